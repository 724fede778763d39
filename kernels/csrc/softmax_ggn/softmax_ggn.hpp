// y = p * (u - <p, u>) with p = softmax(x), row by row: the Gauss-Newton product of cross-entropy. No Python here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/dtype.hpp"

namespace modelassay {

// Rows of `num_cols` neighbouring elements of one type, each matrix with its own distance between rows, in elements.
struct SoftmaxGgn {
  DType dtype;  // kBF16, kF16 or kF32
  std::int64_t num_rows;
  std::int64_t num_cols;
  const std::byte* logits;
  std::int64_t logits_stride;
  const std::byte* u;
  std::int64_t u_stride;
  std::byte* y;
  std::int64_t y_stride;
};

// Sums run in float for 16 additions per lane and continue in double. A row is the work of one thread, so the result does
// not depend on their number. Each thread keeps one row of floats.
void softmax_ggn(const SoftmaxGgn& task, int num_threads, const std::string& instruction_set);

}  // namespace modelassay
