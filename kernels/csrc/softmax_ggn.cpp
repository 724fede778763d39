#include "softmax_ggn.hpp"

#include <memory>
#include <stdexcept>
#include <vector>

#include "parallel.hpp"
#include "softmax_ggn_isa.hpp"

namespace modelassay {
namespace {

constexpr std::int64_t kSmallElements = 1 << 15;  // fewer are finished before a thread has started
constexpr std::int64_t kScratchMargin = 64;       // floats; the widest load of any instruction set

const SoftmaxGgnRows& find_rows(const std::string& wanted) {
  const std::vector<std::string> names = instruction_sets();
  const std::string name = wanted.empty() ? names.front() : wanted;
  bool known = false;
  for (const std::string& candidate : names) known = known || candidate == name;
  if (!known) throw std::invalid_argument("softmax_ggn: this machine has no instruction set '" + name + "'");
#if defined(__x86_64__)
  if (name == "avx512") return avx512::softmax_ggn_rows;
  if (name == "avx2") return avx2::softmax_ggn_rows;
#endif
  return portable::softmax_ggn_rows;
}

SoftmaxGgnRow find_row(const SoftmaxGgnRows& rows, DType dtype) {
  if (dtype == DType::kBF16) return rows.bf16;
  if (dtype == DType::kF16) return rows.f16;
  if (dtype == DType::kF32) return rows.f32;
  throw std::invalid_argument("softmax_ggn: expected bfloat16, float16 or float32");
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
