// Turns a kernel's invalid memory access into an error report.
#pragma once

#include <string>

namespace sim {

// Once per process, and then once per OS thread that runs blocks.
void install_fault_handler();

// ---- memory.cpp ----
// Where an address lies relative to the device memory nearest below it; empty if there is none.
std::string describe_address(const void* address);

}
