// The instruction sets that operations are compiled for, and the choice among them at run time.
//
// An operation has one file per set, compiled for it, and an isa.hpp that declares what such a file gives: the seam. Nothing
// from the standard library with a body may be used behind the seam: an inline function compiled for AVX-512 could be the copy
// the linker keeps for everybody.
#pragma once

#include <string>
#include <vector>

namespace modelassay {

// kAvx512Bf16 has AVX-512's byte tables (VBMI) and products of bf16 too; only layer_std has code of its own for it.
enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The names of the sets this machine has, best first; the last is always "portable".
std::vector<std::string> instruction_sets();

// The names of all that operations are compiled for here, whatever this machine has.
std::vector<std::string> compiled_instruction_sets();

// The set of this name, the best for an empty one. Throws std::invalid_argument where this machine does not have it.
InstructionSet find_instruction_set(const std::string& name);

}  // namespace modelassay
