// PyTorch's c10d behind a small face: a store of keys and values that all processes see, and collectives on tensors.
// collectives.cpp is the only file that includes headers of c10d, which cost half a minute of compilation.
//
// Every function throws CollectiveError when the other side does not answer; ProcessGroup finds out who that was.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "lm/training/launch_environment.h"

namespace tda {

class CollectiveError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A connection to the store. Functions may wait, and block each other: a thread of its own needs its own connection.
class KeyValueStore {
 public:
  // `serve`: this process holds the store. Waits for whoever holds it until `timeout`.
  KeyValueStore(const LaunchEnvironment& launch, bool serve, std::chrono::milliseconds timeout);
  ~KeyValueStore();
  KeyValueStore(const KeyValueStore&) = delete;
  KeyValueStore& operator=(const KeyValueStore&) = delete;

  void set(const std::string& key, const std::string& value);
  bool has(const std::string& key);
  // True for the first process that asks, and only for that one.
  bool claim(const std::string& key);
  // The values of keys that are there.
  std::vector<std::string> get(const std::vector<std::string>& keys);

 private:
  friend class Collectives;
  struct Connection;
  std::unique_ptr<Connection> connection_;
};

// All processes call the same functions in the same order.
class Collectives {
 public:
  // `backend` is "gloo" (CPU) or "nccl" (GPU, in programs built with it).
  Collectives(KeyValueStore& store, const LaunchEnvironment& launch, const std::string& backend, at::Device device,
              std::chrono::milliseconds timeout);
  ~Collectives();
  Collectives(const Collectives&) = delete;
  Collectives& operator=(const Collectives&) = delete;

  static bool has_nccl();

  using Wait = std::function<void()>;
  // Sums `tensor` over all processes, in place, in the background until the returned function has been called. On a
  // GPU that function makes the current stream wait, not the caller.
  [[nodiscard]] Wait start_all_reduce(const at::Tensor& tensor);

  // whole (size·n) = the parts (n) of all processes, by rank. Both contiguous and of one type.
  [[nodiscard]] Wait start_all_gather(const at::Tensor& whole, const at::Tensor& part);

  // Gives up what is under way: the destructor, which would wait for it, does nothing any more.
  void abandon();

 private:
  struct Backend;
  std::unique_ptr<Backend> backend_;
};

}  // namespace tda
