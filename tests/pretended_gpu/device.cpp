// A CUDA device for a torch that was built without CUDA. Its memory is the host's, and the processor computes in it;
// but its tensors are CUDA tensors, to torch and to everybody who asks, and do not mix with the host's.
//
// One kernel serves all operators: it looks at the devices of their tensors as CUDA's do, makes tensors on the host over
// the same memory, calls the processor's kernel, and makes CUDA tensors of what comes back.

#include <ATen/ATen.h>
#include <ATen/SDPBackend.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <unordered_map>
#include <unordered_set>

using at::Tensor;
using c10::Device;
using c10::IValue;
using c10::Storage;
using c10::Stream;
using torch::jit::Stack;

namespace {

const Device GPU(c10::kCUDA, 0), HOST(c10::kCPU);

bool present = false;
// A process of several calls its own by its number.
const int last = std::getenv("LOCAL_RANK") ? std::atoi(std::getenv("LOCAL_RANK")) : 0;
std::atomic<int64_t> allocated{0}, peak{0}, most{0};  // bytes
std::unordered_set<std::string> takes_host_scalars;   // operators, see check_devices

// Memory.

struct Held {
  Storage host;
  int64_t bytes;
};

// The memory of a storage on the host, now of the GPU.
c10::DataPtr on_gpu(Storage host) {
  const int64_t bytes = host.nbytes();
  TORCH_CHECK_WITH(OutOfMemoryError, allocated + bytes <= most, "CUDA out of memory. Tried to allocate ", bytes, " bytes");
  const int64_t now = allocated += bytes;
  for (int64_t before = peak; now > before && !peak.compare_exchange_weak(before, now);) {
  }
  void* data = host.mutable_data();
  auto free = [](void* context) {
    auto* held = static_cast<Held*>(context);
    allocated -= held->bytes;
    delete held;
  };
  return {data, new Held{std::move(host), bytes}, free, GPU};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    return on_gpu(Storage(Storage::use_byte_size_t(), bytes, c10::GetAllocator(c10::kCPU)));
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} memory;

// Tensors on the other side, for the length of one call.

Tensor over(Storage storage, c10::DispatchKey key, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

class Crossing {
 public:
  Tensor to_host(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (auto& [gpu, host] : tensors_) {
      if (gpu.is_same(tensor)) return host;
    }
    auto [found, is_new] = storages_.try_emplace(tensor.storage().unsafeGetStorageImpl());
    if (is_new) {
      auto release = [](void* held) { delete static_cast<Storage*>(held); };
      c10::DataPtr data(tensor.storage().mutable_data(), new Storage(tensor.storage()), release, HOST);
      found->second = Storage(
          Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(data), c10::GetAllocator(c10::kCPU), true);
    }
    auto host = over(found->second, c10::DispatchKey::CPU, tensor);
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
    tensors_.emplace_back(tensor, host);
    return host;
  }

  // What an operator gave back: a tensor that it was given, a view of one, or a new one.
  Tensor to_gpu(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (auto& [gpu, host] : tensors_) {
      if (host.is_same(tensor)) return gpu;
    }
    for (auto& [gpu, host] : storages_) {
      if (host.unsafeGetStorageImpl() != tensor.storage().unsafeGetStorageImpl()) continue;
      return over(Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(gpu)), c10::DispatchKey::CUDA, tensor);
    }
    const auto bytes = tensor.storage().nbytes();
    Storage storage(Storage::use_byte_size_t(), bytes, on_gpu(tensor.storage()), &memory, true);
    return over(storage, c10::DispatchKey::CUDA, tensor);
  }

  // What an operator has made of the size of the tensors that it was given.
  void resize() {
    for (auto& [gpu, host] : storages_) {
      const auto bytes = host.nbytes();
      if (bytes == gpu->nbytes()) continue;
      gpu->set_data_ptr_noswap(on_gpu(host));
      gpu->set_nbytes(bytes);
    }
    for (auto& [gpu, host] : tensors_) {
      if (gpu.sizes() == host.sizes() && gpu.strides() == host.strides()) continue;
      gpu.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::unordered_map<c10::StorageImpl*, Storage> storages_;
};

// Operators.

template <typename F>
IValue each_tensor(const IValue& value, F change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> changed;
    for (const Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    return changed;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorList()) {
      changed.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    }
    return changed;
  }
  return value;
}

// All tensors are on the GPU, as torch checks before CUDA's kernels; where it leaves that to the kernel, a tensor without
// dimensions that is only read may be on the host (aten/src/ATen/TensorIterator.cpp), and so may indices.
void check_devices(const c10::FunctionSchema& schema, const Stack& stack) {
  const auto& overload = schema.overload_name();
  const std::string name = overload.empty() ? schema.name() : schema.name() + "." + overload;
  const bool lenient = takes_host_scalars.count(name) > 0;
  const size_t first = stack.size() - schema.arguments().size();
  for (size_t i = first; i < stack.size(); ++i) {
    const auto& argument = schema.arguments()[i - first];
    const bool read = !argument.alias_info() || !argument.alias_info()->isWrite();
    each_tensor(stack[i], [&](const Tensor& tensor) {
      const bool fits = !tensor.defined() || tensor.is_cuda() || (lenient && argument.name() == "indices") ||
          (lenient && read && tensor.is_cpu() && tensor.dim() == 0);
      TORCH_CHECK(fits, "Expected all tensors to be on the same device, but found at least two devices, ", GPU, " and ",
                  tensor.device(), "! (argument ", argument.name(), " of ", name, ")");
      return tensor;
    });
  }
}

void call(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  check_devices(schema, *stack);
  Crossing crossing;
  auto to_host = [&](const Tensor& tensor) { return crossing.to_host(tensor); };
  auto to_gpu = [&](const Tensor& tensor) { return crossing.to_gpu(tensor); };
  for (auto i = stack->end() - schema.arguments().size(); i != stack->end(); ++i) {
    if (i->isDevice() && i->toDevice().is_cuda()) {
      TORCH_CHECK(present && i->toDevice().index() <= last, "CUDA error: invalid device ordinal");
    }
    *i = i->isDevice() ? IValue(HOST) : each_tensor(*i, to_host);
  }
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  crossing.resize();
  for (auto i = stack->end() - schema.returns().size(); i != stack->end(); ++i) *i = each_tensor(*i, to_gpu);
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  Crossing crossing;
  auto to = crossing.to_host(self), from = crossing.to_host(source);
  at::AutoDispatchBelowADInplaceOrView below;
  to.copy_(from);
  return self;
}

// For what carries bytes from one process to another: the same memory, as a tensor on the host.
Tensor memory_of(const Tensor& tensor) { return Crossing().to_host(tensor); }

// By the plain formula; not at all where flash attention alone is allowed and there is a mask, which it does not take.
int64_t attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>& mask, double, bool,
                  std::optional<double>, bool) {
  const auto& allowed = at::globalContext();
  const bool possible = !mask || allowed.userEnabledMathSDP() || allowed.userEnabledMemEfficientSDP();
  return static_cast<int64_t>(possible ? at::SDPBackend::math : at::SDPBackend::error);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&call>()); }

// Of integers as well, which only CUDA counts.
Tensor histc(const Tensor& self, int64_t bins, const at::Scalar& least, const at::Scalar& largest) {
  Crossing crossing;
  auto host = crossing.to_host(self);
  at::AutoDispatchBelowADInplaceOrView below;
  return crossing.to_gpu(host.to(at::kFloat).histc(bins, least, largest).to(host.scalar_type()));
}

void record_stream(Tensor&, Stream) {}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", copy_);
  library.impl("record_stream", record_stream);
  library.impl("histc", histc);
  // Elsewhere these choose a kernel by the device, of which there is none here.
  library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&call>());
  library.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&call>());
}

TORCH_LIBRARY(pretended, library) { library.def("memory(Tensor(a) tensor) -> Tensor(a)"); }

TORCH_LIBRARY_IMPL(pretended, CUDA, library) { library.impl("memory", memory_of); }

// The device itself: one, whose work is done as soon as it is asked for.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, GPU); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, GPU); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, GPU); }
  Stream exchangeStream(Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return present; }
  bool isBuilt() const override { return present; }
  bool isAvailable() const override { return present; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return present; }
  int getNumGPUs() const override { return present; }
  c10::DeviceIndex deviceCount() const override { return present; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &memory; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

// Data parallelism wants one for its log.
struct NoTimer final : c10d::Timer {
  explicit NoTimer(Device) {}
  void record(Event) override {}
  std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};

using c10d::RegistererTimerRegistry, c10d::TimerRegistry;
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, NoTimer)

}  // namespace

extern "C" {

void gpu_start() {
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(attention);
  c10::SetAllocator(c10::kCUDA, &memory);
  // torch made its hooks, which know of no CUDA, when it was imported: these take their place.
  static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks();
}
void gpu_present(bool now) { present = now; }
void gpu_takes_host_scalars(const char* name) { takes_host_scalars.insert(name); }
void gpu_limit(int64_t bytes) { most = bytes; }
int64_t gpu_allocated() { return allocated; }
int64_t gpu_peak() { return peak; }
void gpu_reset_peak() { peak = allocated.load(); }
}
