#include "common/memory.hpp"

#include <sys/mman.h>

#include <cstdint>

namespace modelassay {

void ask_for_large_pages([[maybe_unused]] std::byte* data, [[maybe_unused]] std::size_t num_bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kLargePage = 2 << 20;
  // Whole large pages alone: what shares one with a neighbour stays as it is.
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (address + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t end = (address + num_bytes) / kLargePage * kLargePage;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}  // namespace modelassay
