// What the system is told of memory.
#pragma once

#include <cstddef>

namespace modelassay {

// Asks for pages of 2 MiB behind `num_bytes` that are about to be written for the first time: each page costs a fault, and of
// a result of 64 MiB the faults of 4 KiB pages take as long as computing it. Only advice; nothing where it is not known.
void ask_for_large_pages(std::byte* data, std::size_t num_bytes);

}  // namespace modelassay
