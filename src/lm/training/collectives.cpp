#include "lm/training/collectives.h"

#include <c10/util/Logging.h>

#include <dlfcn.h>

#include <cstdlib>

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace tda {
namespace {

// LibTorch's messages end in a trace of the C++ stack, which says nothing to a user.
std::string first_line(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text = c10_error != nullptr ? c10_error->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

template <typename Function>
auto with_one_line(Function&& function) {
  try {
    return function();
  } catch (const std::exception& error) {
    throw CollectiveError(first_line(error));
  }
}

// When a process is lost, this program says which; c10d would add a warning with a stack trace from every process.
void keep_c10d_quiet() {
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", /*overwrite=*/0);
  c10::initLogging();
}

// nccl_backend.cpp, or null where it was not built.
using NcclCreator = c10d::Backend* (*)(const c10::intrusive_ptr<c10d::Store>&, int, int, c10::Device,
                                       std::chrono::milliseconds);

NcclCreator nccl_creator() {
  void* const module = ::dlopen("libtda_nccl.so", RTLD_NOW | RTLD_LOCAL);
  return module == nullptr ? nullptr : reinterpret_cast<NcclCreator>(::dlsym(module, "tda_create_nccl_backend"));
}

Collectives::Wait waiter(c10::intrusive_ptr<c10d::Work> work) {
  return [work = std::move(work)] { with_one_line([&] { work->wait(); }); };
}

}  // namespace

struct KeyValueStore::Connection {
  c10::intrusive_ptr<c10d::Store> store;
};

KeyValueStore::KeyValueStore(const LaunchEnvironment& launch, bool serve, std::chrono::milliseconds timeout)
    : connection_(std::make_unique<Connection>()) {
  keep_c10d_quiet();
  c10d::TCPStoreOptions options;
  options.port = launch.port;
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = timeout;
  connection_->store = with_one_line([&] {
    auto store = c10::make_intrusive<c10d::TCPStore>(launch.address, options);
    // Keys of an attempt that torchrun restarted may still stand in its store.
    return c10::make_intrusive<c10d::PrefixStore>("tda/" + launch.attempt, std::move(store));
  });
}

KeyValueStore::~KeyValueStore() = default;

void KeyValueStore::set(const std::string& key, const std::string& value) {
  with_one_line([&] { connection_->store->set(key, std::vector<std::uint8_t>(value.begin(), value.end())); });
}

bool KeyValueStore::has(const std::string& key) {
  return with_one_line([&] { return connection_->store->check({key}); });
}

bool KeyValueStore::claim(const std::string& key) {
  return with_one_line([&] { return connection_->store->add(key, 1) == 1; });
}

std::vector<std::string> KeyValueStore::get(const std::vector<std::string>& keys) {
  return with_one_line([&] {
    std::vector<std::string> values;
    for (const auto& value : connection_->store->multiGet(keys)) values.emplace_back(value.begin(), value.end());
    return values;
  });
}

struct Collectives::Backend {
  c10::intrusive_ptr<c10d::Backend> group;
};

Collectives::Collectives(KeyValueStore& store, const LaunchEnvironment& launch, const std::string& backend,
                         at::Device device, std::chrono::milliseconds timeout)
    : backend_(std::make_unique<Backend>()) {
  backend_->group = with_one_line([&]() -> c10::intrusive_ptr<c10d::Backend> {
    const auto keys = c10::make_intrusive<c10d::PrefixStore>(backend, store.connection_->store);
    if (backend == "gloo") {
      return c10::make_intrusive<c10d::ProcessGroupGloo>(keys, launch.rank, launch.world_size,
                                                         c10d::ProcessGroupGloo::Options::create_default(timeout));
    }
    if (backend == "nccl") {
      const c10::intrusive_ptr<c10d::Store> store_of_job = keys;
      return c10::intrusive_ptr<c10d::Backend>::reclaim(
          nccl_creator()(store_of_job, launch.rank, launch.world_size, device, timeout));
    }
    throw CollectiveError("no collectives called " + backend + " on " + device.str());
  });
}

Collectives::~Collectives() = default;

bool Collectives::has_nccl() { return nccl_creator() != nullptr; }

Collectives::Wait Collectives::start_all_reduce(const at::Tensor& tensor) {
  std::vector<at::Tensor> tensors = {tensor};
  return waiter(with_one_line([&] { return backend_->group->allreduce(tensors); }));
}

Collectives::Wait Collectives::start_all_gather(const at::Tensor& whole, const at::Tensor& part) {
  at::Tensor output = whole, input = part;
  return waiter(with_one_line([&] { return backend_->group->_allgather_base(output, input); }));
}

void Collectives::abandon() { static_cast<void>(backend_.release()); }

}  // namespace tda
