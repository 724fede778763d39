// The only file that knows Python: turns its arguments into typed, checked views, releases the GIL, and names the operation in
// its errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bottom_k/bottom_k.hpp"
#include "common/instruction_sets.hpp"
#include "common/memory.hpp"
#include "common/threads.hpp"
#include "layer_std/layer_std.hpp"
#include "softmax_ggn/softmax_ggn.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using modelassay::DType;
using modelassay::Scale;
using modelassay::Shape;

using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using AnyBytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ScaleMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A scale and the rows and columns of the blocks it belongs to.
struct BlockScale {
  ScaleMatrix values;
  std::int64_t block_rows;
  std::int64_t block_cols;
};

// Whether a signal's handler has raised, KeyboardInterrupt say; on other threads than Python's first there is never one.
bool python_interrupted() {
  const nb::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;
}

// Defines an operation that puts its name before what it says of an argument, and ends with what a signal's handler raised.
template <class Result, class... Parameters, class... Extra>
void define(nb::module_& m, const char* operation, Result (*function)(Parameters...), const Extra&... extra) {
  const auto named = [operation, function](Parameters... arguments) -> Result {
    try {
      return function(std::forward<Parameters>(arguments)...);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(operation) + ": " + error.what());
    } catch (const modelassay::Interrupted&) {
      throw nb::python_error();  // takes the exception that PyErr_CheckSignals has left
    }
  };
  m.def(operation, named, extra...);
}

DType parse_dtype(const std::string& code) {
  if (code == "BF16") return DType::kBF16;
  if (code == "F16") return DType::kF16;
  if (code == "F32") return DType::kF32;
  if (code == "F64") return DType::kF64;
  if (code == "F8_E4M3") return DType::kE4M3;
  if (code == "F8_E5M2") return DType::kE5M2;
  throw std::invalid_argument("unknown dtype code '" + code + "'");
}

bool holds(const AnyMatrix& array, DType dtype) {
  const nb::dlpack::dtype is = array.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(is.code);
  if (is.lanes != 1 || is.bits != 8 * modelassay::element_size(dtype)) return false;
  switch (dtype) {
    case DType::kBF16:
      return code == nb::dlpack::dtype_code::Bfloat;
    case DType::kF16:
    case DType::kF32:
    case DType::kF64:
      return code == nb::dlpack::dtype_code::Float;
    case DType::kE4M3:
    case DType::kE5M2:
      return code == nb::dlpack::dtype_code::UInt;  // few consumers know the codes of fp8 yet: passed as bytes
  }
  return false;
}

void check_holds(const AnyMatrix& array, DType dtype, const std::string& code) {
  if (!holds(array, dtype)) throw std::invalid_argument("the array does not hold " + code);
}

void check_shape(const Shape& shape) {
  std::int64_t elements = 0;
  std::int64_t reach = 0;
  const bool bad = shape.num_rows < 0 || shape.num_cols < 0 || shape.row_stride < 0 ||
                   __builtin_mul_overflow(shape.num_rows, shape.num_cols, &elements) ||
                   __builtin_mul_overflow(elements, std::int64_t{8}, &elements) ||
                   __builtin_mul_overflow(shape.num_rows, shape.row_stride, &reach) ||
                   __builtin_mul_overflow(reach, std::int64_t{8}, &reach);
  if (bad) throw std::invalid_argument("negative sizes or more bytes than 63 bits can count");
}

Scale make_scale(const std::optional<BlockScale>& scale, const Shape& shape) {
  if (!scale) return {};
  const std::int64_t block_rows = scale->block_rows;
  const std::int64_t block_cols = scale->block_cols;
  if (block_rows < 1 || block_cols < 1) throw std::invalid_argument("blocks of a scale must not be empty");
  const std::int64_t rows = (shape.num_rows + block_rows - 1) / block_rows;
  const std::int64_t cols = (shape.num_cols + block_cols - 1) / block_cols;
  if (static_cast<std::int64_t>(scale->values.shape(0)) != rows || static_cast<std::int64_t>(scale->values.shape(1)) != cols) {
    throw std::invalid_argument("the scale has another shape than its blocks: expected " + std::to_string(rows) + " x " +
                                std::to_string(cols));
  }
  return {scale->values.data(), cols, block_rows, block_cols};
}

std::span<double> checked_output(const Output& out, std::size_t num_items) {
  if (out.shape(0) != num_items) throw std::invalid_argument("one output per item is needed");
  return {out.data(), num_items};
}

std::optional<BlockScale> parse_scale(nb::handle value) {
  if (value.is_none()) return std::nullopt;
  auto [values, block_rows, block_cols] = nb::cast<std::tuple<ScaleMatrix, std::int64_t, std::int64_t>>(value);
  return BlockScale{std::move(values), block_rows, block_cols};
}

// Calls `parse` for each item; what it refuses is said of that item.
template <class Parse>
void for_each_argument(const nb::list& items, const Parse& parse) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    try {
      parse(items[i]);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("item " + std::to_string(i) + ": " + error.what());
    }
  }
}

void layer_std(const nb::list& items, Output out, int correction, int num_threads, std::string instruction_set) {
  std::vector<AnyMatrix> arrays;  // keep the memory of the items and scales alive
  std::vector<std::optional<BlockScale>> scales;
  std::vector<modelassay::Matrix> matrices;
  for_each_argument(items, [&](nb::handle item) {
    auto [array, code, scale] = nb::cast<std::tuple<AnyMatrix, std::string, nb::object>>(item);
    const DType dtype = parse_dtype(code);
    check_holds(array, dtype, code);
    const bool one_col = array.shape(1) <= 1;
    if (!one_col && array.stride(1) != 1) throw std::invalid_argument("elements of a row must be neighbours");
    const Shape shape = {dtype, static_cast<std::int64_t>(array.shape(0)), static_cast<std::int64_t>(array.shape(1)),
                         array.stride(0)};
    check_shape(shape);
    scales.push_back(parse_scale(scale));
    matrices.push_back({shape, make_scale(scales.back(), shape), static_cast<const std::byte*>(array.data())});
    arrays.push_back(std::move(array));
  });
  const std::span<double> results = checked_output(out, matrices.size());
  const nb::gil_scoped_release release;
  modelassay::layer_std(matrices, {correction, num_threads, std::move(instruction_set)}, results);
}

void layer_std_file(const nb::list& items, Output out, int correction, int num_threads, std::string instruction_set) {
  using Item = std::tuple<std::string, std::int64_t, std::string, std::int64_t, std::int64_t, std::int64_t, nb::object>;
  std::vector<std::optional<BlockScale>> scales;
  std::vector<modelassay::FileMatrix> matrices;
  for_each_argument(items, [&](nb::handle item) {
    auto [path, offset, code, num_rows, num_cols, row_stride, scale] = nb::cast<Item>(item);
    const Shape shape = {parse_dtype(code), num_rows, num_cols, row_stride};
    check_shape(shape);
    if (offset < 0) throw std::invalid_argument("the offset is negative");
    if (num_rows > 1 && row_stride < num_cols) throw std::invalid_argument("rows overlap");
    scales.push_back(parse_scale(scale));
    matrices.push_back({shape, make_scale(scales.back(), shape), std::move(path), offset});
  });
  const std::span<double> results = checked_output(out, matrices.size());
  const nb::gil_scoped_release release;
  modelassay::layer_std_file(matrices, {correction, num_threads, std::move(instruction_set)}, results);
}

std::uint64_t read_bytes(const AnyBytes& data, int num_threads, std::string instruction_set, int pattern) {
  if (pattern < 0 || pattern >= modelassay::kNumReadPatterns) throw std::invalid_argument("there is no such read pattern");
  const auto* first = reinterpret_cast<const std::byte*>(data.data());
  const auto num_bytes = static_cast<std::int64_t>(data.size());
  const nb::gil_scoped_release release;
  return modelassay::read_bytes(first, num_bytes, {0, num_threads, std::move(instruction_set)},
                                static_cast<modelassay::ReadPattern>(pattern));
}

void ask_for_large_pages(const nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& data) {
  modelassay::ask_for_large_pages(reinterpret_cast<std::byte*>(data.data()), data.size());
}

using WritableMatrix = nb::ndarray<nb::ndim<2>, nb::device::cpu>;

// The distance between rows, in elements, of a matrix that must be like the logits.
template <class Matrix>
std::int64_t checked_stride(const Matrix& array, const Shape& shape, const nb::dlpack::dtype& dtype, const char* name) {
  const bool same = static_cast<std::int64_t>(array.shape(0)) == shape.num_rows &&
                    static_cast<std::int64_t>(array.shape(1)) == shape.num_cols && array.dtype() == dtype;
  const bool neighbours = array.shape(1) <= 1 || array.stride(1) == 1;
  if (!same || !neighbours || array.stride(0) < 0) {
    throw std::invalid_argument(std::string(name) +
                                " must have the type and shape of the logits, and rows of neighbouring elements");
  }
  return array.stride(0);
}

void softmax_ggn(const AnyMatrix& logits, const AnyMatrix& u, const WritableMatrix& y, const std::string& code,
                 int num_threads, const std::string& instruction_set) {
  const DType dtype = parse_dtype(code);
  check_holds(logits, dtype, code);
  const Shape shape = {dtype, static_cast<std::int64_t>(logits.shape(0)), static_cast<std::int64_t>(logits.shape(1)), 0};
  check_shape(shape);
  const std::int64_t y_stride = checked_stride(y, shape, logits.dtype(), "y");
  if (shape.num_rows > 1 && y_stride < shape.num_cols) throw std::invalid_argument("rows of y overlap");
  const modelassay::SoftmaxGgn task = {dtype,
                                       shape.num_rows,
                                       shape.num_cols,
                                       static_cast<const std::byte*>(logits.data()),
                                       checked_stride(logits, shape, logits.dtype(), "the logits"),
                                       static_cast<const std::byte*>(u.data()),
                                       checked_stride(u, shape, logits.dtype(), "u"),
                                       static_cast<std::byte*>(y.data()),
                                       y_stride};
  const nb::gil_scoped_release release;
  modelassay::softmax_ggn(task, num_threads, instruction_set);
}

using Mask = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyOutput = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The rows of an array, with the mask of its columns where there is one.
modelassay::Rows make_rows(const AnyMatrix& array, const std::string& code, const std::optional<Mask>& valid) {
  constexpr std::int64_t kMaxCols = 0xffffffff;
  const DType dtype = parse_dtype(code);
  check_holds(array, dtype, code);
  const modelassay::Rows rows = {dtype,           static_cast<std::int64_t>(array.shape(0)),
                                 static_cast<std::int64_t>(array.shape(1)), array.stride(0), array.stride(1),
                                 static_cast<const std::byte*>(array.data())};
  if (rows.num_cols > kMaxCols) throw std::invalid_argument("more than 2^32 - 1 columns");
  if (valid && static_cast<std::int64_t>(valid->shape(0)) != rows.num_cols) {
    throw std::invalid_argument("the mask has another length than the rows");
  }
  return rows;
}

const std::uint8_t* mask_bytes(const std::optional<Mask>& valid) { return valid ? valid->data() : nullptr; }

void check_outputs(const AnyOutput& values, const Ids& ids, std::size_t num_rows, DType dtype) {
  const bool fits = values.shape(0) == num_rows && ids.shape(0) == num_rows && values.shape(1) == ids.shape(1);
  if (!fits || !holds(AnyMatrix(values), dtype)) {
    throw std::invalid_argument("values and ids must have one row per row and the rows' type");
  }
}

void bottom_k(const AnyMatrix& array, const std::string& code, AnyOutput values, Ids ids, std::optional<Mask> valid,
              bool largest, bool sort, int num_threads, std::string instruction_set) {
  const modelassay::Rows rows = make_rows(array, code, valid);
  check_outputs(values, ids, array.shape(0), rows.dtype);
  const auto k = static_cast<std::int64_t>(ids.shape(1));
  const nb::gil_scoped_release release;
  modelassay::bottom_k(rows, {k, largest, sort, mask_bytes(valid), num_threads, std::move(instruction_set)},
                       static_cast<std::byte*>(values.data()), ids.data());
}

modelassay::Running make_running(const Ids& entries, const Counts& counts, const Counts& limits, std::size_t num_rows) {
  if (entries.shape(0) != num_rows || counts.shape(0) != num_rows || limits.shape(0) != num_rows) {
    throw std::invalid_argument("entries, counts and limits must be as many as the rows");
  }
  const auto capacity = static_cast<std::int64_t>(entries.shape(1));
  for (std::size_t i = 0; i < num_rows; ++i) {
    if (counts.data()[i] < 0 || counts.data()[i] > capacity) {
      throw std::invalid_argument("a count is not within the capacity");
    }
  }
  return {reinterpret_cast<std::uint64_t*>(entries.data()), capacity, counts.data(), limits.data()};
}

void bottom_k_fold(const AnyMatrix& array, const std::string& code, std::int64_t first_id, std::int64_t k, Ids entries,
                   Counts counts, Counts limits, std::optional<Mask> valid, bool largest, int num_threads,
                   std::string instruction_set) {
  const modelassay::Rows rows = make_rows(array, code, valid);
  if (k < 0 || first_id < 0 || first_id + rows.num_cols > 0xffffffff) {
    throw std::invalid_argument("k is negative, or ids leave 0 ... 2^32 - 1");
  }
  const modelassay::Running running = make_running(entries, counts, limits, array.shape(0));
  const nb::gil_scoped_release release;
  modelassay::bottom_k_fold(rows, first_id,
                            {k, largest, true, mask_bytes(valid), num_threads, std::move(instruction_set)}, running);
}

void bottom_k_finish(Ids entries, Counts counts, Counts limits, AnyOutput values, Ids ids, bool largest, bool sort,
                     int num_threads) {
  check_outputs(values, ids, counts.shape(0), DType::kF32);
  const modelassay::Running running = make_running(entries, counts, limits, counts.shape(0));
  const auto num_rows = static_cast<std::int64_t>(counts.shape(0));
  const auto k = static_cast<std::int64_t>(ids.shape(1));
  const nb::gil_scoped_release release;
  modelassay::bottom_k_finish(running, num_rows, {k, largest, sort, nullptr, num_threads, ""},
                              static_cast<float*>(values.data()), ids.data());
}

}  // namespace

NB_MODULE(_native, m) {
  modelassay::set_interrupt_check(&python_interrupted);
  m.doc() = "Compiled CPU operations; see _native.pyi for their types and the modules that call them for their meaning.";
  define(m, "bottom_k", &bottom_k, "rows"_a, "code"_a, "values"_a, "ids"_a, "valid"_a.none(), "largest"_a, "sort"_a,
         "num_threads"_a, "instruction_set"_a = "");
  define(m, "bottom_k_fold", &bottom_k_fold, "rows"_a, "code"_a, "first_id"_a, "k"_a, "entries"_a, "counts"_a, "limits"_a,
         "valid"_a.none(), "largest"_a, "num_threads"_a, "instruction_set"_a = "");
  define(m, "bottom_k_finish", &bottom_k_finish, "entries"_a, "counts"_a, "limits"_a, "values"_a, "ids"_a, "largest"_a,
         "sort"_a, "num_threads"_a);
  define(m, "layer_std", &layer_std, "items"_a, "out"_a, "correction"_a, "num_threads"_a, "instruction_set"_a = "");
  define(m, "layer_std_file", &layer_std_file, "items"_a, "out"_a, "correction"_a, "num_threads"_a, "instruction_set"_a = "");
  define(m, "softmax_ggn", &softmax_ggn, "logits"_a, "u"_a, "y"_a, "dtype"_a, "num_threads"_a, "instruction_set"_a = "");
  define(m, "read_bytes", &read_bytes, "data"_a, "num_threads"_a, "instruction_set"_a = "", "pattern"_a = 0);
  m.attr("NUM_READ_PATTERNS") = modelassay::kNumReadPatterns;
  m.def("bottom_k_capacity", &modelassay::running_capacity, "k"_a);
  m.def("instruction_sets", &modelassay::instruction_sets);
  m.attr("INSTRUCTION_SETS") = nb::cast(modelassay::compiled_instruction_sets());
  m.def("threads_for", &modelassay::threads_for, "num_bytes"_a, "num_threads"_a);
  m.def("ask_for_large_pages", &ask_for_large_pages, "data"_a);
}
