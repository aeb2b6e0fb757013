// The TMA unit.
#include "sim/state.hpp"

namespace sim {

bool run_pending_tensor_copy() { return false; }
void check_nothing_pending() {}

}
