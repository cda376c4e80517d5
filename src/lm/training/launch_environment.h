// Which process of how many this is, as torchrun says it in the environment.
#pragma once

#include <cstdint>
#include <string>

namespace tda {

struct LaunchEnvironment {
  int rank = 0;
  int local_rank = 0;  // on this machine: the number of the GPU
  int world_size = 1;
  std::string address;  // of the store through which processes meet
  std::uint16_t port = 0;
  bool launcher_serves = false;  // torchrun holds the store; else the process of rank 0 does
  std::string attempt = "0";     // counts the restarts of torchrun --max-restarts
};

// Reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and what torchrun adds. Without WORLD_SIZE, or when
// it is 1, a single process whatever the rest says. Throws Error naming a variable that is missing or no valid number.
LaunchEnvironment read_launch_environment();

}  // namespace tda
