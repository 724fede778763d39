// The element types of all operations.
#pragma once

#include <cstdint>

namespace modelassay {

enum class DType : int { kBF16, kF16, kF32, kF64, kE4M3, kE5M2 };

constexpr std::int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kF32:
      return 4;
    case DType::kF64:
      return 8;
    case DType::kE4M3:
    case DType::kE5M2:
      return 1;
  }
  return 0;
}

}  // namespace modelassay
