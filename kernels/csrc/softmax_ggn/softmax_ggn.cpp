#include "softmax_ggn/softmax_ggn.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "common/instruction_sets.hpp"
#include "common/threads.hpp"
#include "softmax_ggn/isa.hpp"

namespace modelassay {
namespace {

constexpr std::int64_t kPiece = 4096;           // elements: logits, u and their exponentials stay in the first cache
constexpr std::int64_t kMargin = 64;            // floats; the widest load of any instruction set
constexpr std::int64_t kSmallElements = 1 << 17;  // an exponential each: fewer are not worth a thread
constexpr std::int64_t kCachedBytes = 4 << 20;  // a larger result is written past the caches, which logits and u need

const SoftmaxGgnCode& find_code(const std::string& instruction_set) {
  switch (find_instruction_set(instruction_set)) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512Bf16:
    case InstructionSet::kAvx512:
      return avx512::softmax_ggn_code;
    case InstructionSet::kAvx2:
      return avx2::softmax_ggn_code;
#endif
    default:
      return portable::softmax_ggn_code;
  }
}

const SoftmaxGgnPieces& find_pieces(const SoftmaxGgnCode& code, DType dtype) {
  if (dtype == DType::kBF16) return code.bf16;
  if (dtype == DType::kF16) return code.f16;
  if (dtype == DType::kF32) return code.f32;
  throw std::invalid_argument("only BF16, F16 and F32 are supported");
}

// What one thread keeps of the row it works on.
struct Scratch {
  std::vector<float> kept;
  std::vector<PieceSums> pieces;

  explicit Scratch(std::int64_t num_cols)
      : kept(static_cast<std::size_t>(num_cols + kMargin)), pieces(static_cast<std::size_t>((num_cols + kPiece - 1) / kPiece)) {}
};

struct Row {
  const std::byte* logits;
  const std::byte* u;
  std::byte* y;
};

// Two sweeps, of which only the first leaves the caches: it leaves e = exp(x - m) of each piece, m the piece's maximum, and its
// sums; merged in double, they give y = e exp(m - max) / l * (u - d / l).
void do_row(const Row& row, const SoftmaxGgn& task, const SoftmaxGgnPieces& code, Scratch& scratch, bool past) {
  const std::int64_t size = element_size(task.dtype);
  float max = -std::numeric_limits<float>::infinity();
  for (std::int64_t col = 0; col < task.num_cols; col += kPiece) {
    if (col % (64 * kPiece) == 0) pause();
    PieceSums& piece = scratch.pieces[static_cast<std::size_t>(col / kPiece)];
    const std::int64_t count = std::min(kPiece, task.num_cols - col);
    piece = code.add(row.logits + col * size, row.u + col * size, count, scratch.kept.data() + col);
    max = std::max(max, piece.max);
  }
  double l = 0;
  double d = 0;
  for (PieceSums& piece : scratch.pieces) {
    // Below the row's maximum by more than fp32 can say, a piece weighs nothing; where all is minus infinity, NaN.
    const double weight = std::exp(static_cast<double>(piece.max) - static_cast<double>(max));
    l += piece.l * weight;
    d += piece.d * weight;
  }
  const double mean = d / l;
  for (std::int64_t col = 0; col < task.num_cols; col += kPiece) {
    if (col % (64 * kPiece) == 0) pause();
    const PieceSums& piece = scratch.pieces[static_cast<std::size_t>(col / kPiece)];
    const double weight = std::exp(static_cast<double>(piece.max) - static_cast<double>(max));
    const std::int64_t count = std::min(kPiece, task.num_cols - col);
    code.write(row.u + col * size, scratch.kept.data() + col, count, static_cast<float>(weight / l), static_cast<float>(mean),
               row.y + col * size, past);
  }
}

}  // namespace

void softmax_ggn(const SoftmaxGgn& task, int num_threads, const std::string& instruction_set) {
  const SoftmaxGgnPieces& code = find_pieces(find_code(instruction_set), task.dtype);
  if (task.num_rows == 0 || task.num_cols == 0) return;
  const std::int64_t size = element_size(task.dtype);
  const std::int64_t elements = task.num_rows * task.num_cols;
  const int threads = threads_for(elements / kSmallElements * kSmallBytes, num_threads);
  const bool past = elements * size > kCachedBytes;
  for_each_item(task.num_rows, threads, [&]() -> Worker {
    const auto scratch = std::make_shared<Scratch>(task.num_cols);
    return [&, scratch, past](std::int64_t row) {
      const Row at = {task.logits + row * task.logits_stride * size, task.u + row * task.u_stride * size,
                      task.y + row * task.y_stride * size};
      do_row(at, task, code, *scratch, past);
    };
  });
}

}  // namespace modelassay
