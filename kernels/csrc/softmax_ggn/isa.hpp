// The seam between softmax_ggn.cpp and the code compiled once per instruction set (see common/instruction_sets.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace modelassay {

// `scratch` holds num_cols floats and 64 more.
using SoftmaxGgnRow = void (*)(const std::byte* logits, const std::byte* u, std::byte* y, std::int64_t num_cols,
                               float* scratch);

struct SoftmaxGgnRows {
  SoftmaxGgnRow bf16;
  SoftmaxGgnRow f16;
  SoftmaxGgnRow f32;
};

namespace portable {
extern const SoftmaxGgnRows softmax_ggn_rows;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SoftmaxGgnRows softmax_ggn_rows;
}
namespace avx512 {
extern const SoftmaxGgnRows softmax_ggn_rows;
}
#endif

}  // namespace modelassay
