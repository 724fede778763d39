// The seam between softmax_ggn.cpp and the code compiled once per instruction set (see common/instruction_sets.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace modelassay {

// Of a piece of a row, with e = exp(x - max).
struct PieceSums {
  float max;  // minus infinity where no logit is above it
  double l;   // sum(e)
  double d;   // sum(e u)
};

struct SoftmaxGgnPieces {
  // Leaves e of each element in `kept`: room for `count` floats and 64 more.
  PieceSums (*add)(const std::byte* logits, const std::byte* u, std::int64_t count, float* kept);
  // y = e scale (u - mean); past the caches where y is not to be read again soon.
  void (*write)(const std::byte* u, const float* kept, std::int64_t count, float scale, float mean, std::byte* y, bool past);
};

struct SoftmaxGgnCode {
  SoftmaxGgnPieces bf16;
  SoftmaxGgnPieces f16;
  SoftmaxGgnPieces f32;
};

namespace portable {
extern const SoftmaxGgnCode softmax_ggn_code;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SoftmaxGgnCode softmax_ggn_code;
}
namespace avx512 {
extern const SoftmaxGgnCode softmax_ggn_code;
}
#endif

}  // namespace modelassay
