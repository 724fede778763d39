#include "softmax_ggn/softmax_ggn.hpp"

#include <memory>
#include <stdexcept>
#include <vector>

#include "common/instruction_sets.hpp"
#include "common/threads.hpp"
#include "softmax_ggn/isa.hpp"

namespace modelassay {
namespace {

constexpr std::int64_t kSmallElements = 1 << 15;  // fewer, an exponential each, are finished before a thread has started
constexpr std::int64_t kScratchMargin = 64;       // floats; the widest load of any instruction set

const SoftmaxGgnRows& find_rows(const std::string& instruction_set) {
  switch (find_instruction_set(instruction_set)) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512:
      return avx512::softmax_ggn_rows;
    case InstructionSet::kAvx2:
      return avx2::softmax_ggn_rows;
#endif
    default:
      return portable::softmax_ggn_rows;
  }
}

SoftmaxGgnRow find_row(const SoftmaxGgnRows& rows, DType dtype) {
  if (dtype == DType::kBF16) return rows.bf16;
  if (dtype == DType::kF16) return rows.f16;
  if (dtype == DType::kF32) return rows.f32;
  throw std::invalid_argument("only BF16, F16 and F32 are supported");
}

}  // namespace

void softmax_ggn(const SoftmaxGgn& task, int num_threads, const std::string& instruction_set) {
  const SoftmaxGgnRow row_function = find_row(find_rows(instruction_set), task.dtype);
  if (task.num_rows == 0 || task.num_cols == 0) return;
  const std::int64_t size = element_size(task.dtype);
  const int threads = task.num_rows * task.num_cols < kSmallElements ? 1 : num_threads;
  for_each_item(task.num_rows, threads, [&]() -> Worker {
    const auto scratch = std::make_shared<std::vector<float>>(static_cast<std::size_t>(task.num_cols + kScratchMargin));
    return [&, scratch](std::int64_t row) {
      row_function(task.logits + row * task.logits_stride * size, task.u + row * task.u_stride * size,
                   task.y + row * task.y_stride * size, task.num_cols, scratch->data());
    };
  });
}

}  // namespace modelassay
