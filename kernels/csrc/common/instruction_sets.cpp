#include "common/instruction_sets.hpp"

#include <algorithm>
#include <stdexcept>

namespace modelassay {
namespace {

constexpr const char* kPortableName = "portable";
constexpr const char* kAvx2Name = "avx2";
constexpr const char* kAvx512Name = "avx512";
constexpr const char* kAvx512Bf16Name = "avx512_bf16";

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
  if (has_bf16) names.emplace_back(kAvx512Bf16Name);
  if (has_avx512) names.emplace_back(kAvx512Name);
  if (has_avx2) names.emplace_back(kAvx2Name);
#endif
  names.emplace_back(kPortableName);
  return names;
}

std::vector<std::string> compiled_instruction_sets() {
#if defined(__x86_64__)
  return {kAvx512Bf16Name, kAvx512Name, kAvx2Name, kPortableName};
#else
  return {kPortableName};
#endif
}

InstructionSet find_instruction_set(const std::string& name) {
  const std::vector<std::string> names = instruction_sets();
  const std::string& requested = name.empty() ? names.front() : name;
  if (std::find(names.begin(), names.end(), requested) == names.end()) {
    std::string available;
    for (const std::string& candidate : names) available += (available.empty() ? "" : ", ") + candidate;
    throw std::invalid_argument("instruction set '" + requested + "' is not one that this machine has: " + available);
  }
  if (requested == kAvx512Bf16Name) return InstructionSet::kAvx512Bf16;
  if (requested == kAvx512Name) return InstructionSet::kAvx512;
  return requested == kAvx2Name ? InstructionSet::kAvx2 : InstructionSet::kPortable;
}

}  // namespace modelassay
