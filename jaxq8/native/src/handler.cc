// What XLA calls: a region is instantiated with a compiled program and executed with its buffers. Nothing thrown leaves here.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "parallel.h"
#include "region.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxq8 {
namespace {

// The state that XLA keeps with the compiled program.
struct RegionState {
  static ffi::TypeId id;
  static ffi::TypeInfo info;

  Program program;
  std::shared_ptr<Region> region;

  // The region of this process: after a fork, one that runs with one thread.
  std::shared_ptr<Region> Current() {
    std::shared_ptr<Region> current;
    {
      const Locked locked;
      current = region;
    }
    if (current->forks() == Forks()) return current;
    auto fresh = std::make_shared<Region>(program);
    const Locked locked;
    region = fresh;
    return fresh;
  }
};

ffi::TypeId RegionState::id = {};
ffi::TypeInfo RegionState::info = ffi::MakeTypeInfo<RegionState>();

ffi::ErrorOr<std::unique_ptr<RegionState>> Instantiate(ffi::Span<const int64_t> words) {
  try {
    auto state = std::make_unique<RegionState>();
    state->program = Parse(words.begin(), words.size());
    state->region = std::make_shared<Region>(state->program);
    return state;
  } catch (const std::exception& error) {
    return ffi::Unexpected(ffi::Error(ffi::ErrorCode::kInvalidArgument, error.what()));
  } catch (...) {
    return ffi::Unexpected(ffi::Error(ffi::ErrorCode::kInternal, "region program: unknown failure"));
  }
}

bool IsType(ffi::DataType type, Dtype dtype) {
  switch (dtype) {
    case Dtype::kU8: return type == ffi::DataType::U8;
    case Dtype::kS8: return type == ffi::DataType::S8;
    case Dtype::kS32: return type == ffi::DataType::S32;
    default: return type == ffi::DataType::F32;
  }
}

// Compares a buffer with what the program's views need of it.
uint8_t* Checked(const ffi::AnyBuffer& buffer, const Need& need, const char* kind, size_t number) {
  const auto fail = [&](const std::string& text) {
    throw ProgramError("region program: " + std::string(kind) + " " + std::to_string(number) + " " + text);
  };
  if (need.used && !IsType(buffer.element_type(), need.dtype)) fail("has another dtype than the program's views of it");
  if (need.used && static_cast<int64_t>(buffer.size_bytes()) < need.bytes) {
    fail("has " + std::to_string(buffer.size_bytes()) + " bytes, the program needs " + std::to_string(need.bytes));
  }
  if (need.bytes && reinterpret_cast<uintptr_t>(buffer.untyped_data()) % static_cast<uintptr_t>(SizeOf(need.dtype))) {
    fail("is not aligned to its items");
  }
  return static_cast<uint8_t*>(buffer.untyped_data());
}

// What results that begin with an argument begin with. XLA gives most of them the argument's memory.
void Begin(const Program& program, ffi::RemainingArgs& arguments, ffi::RemainingRets& results) {
  for (const Alias& alias : program.aliases) {
    const ffi::AnyBuffer argument = arguments.get<ffi::AnyBuffer>(static_cast<size_t>(alias.argument)).value();
    const ffi::AnyBuffer result = *results.get<ffi::AnyBuffer>(static_cast<size_t>(alias.result)).value();
    if (argument.element_type() != result.element_type() || argument.size_bytes() != result.size_bytes()) {
      throw ProgramError("region program: argument " + std::to_string(alias.argument) + " is unlike result " +
                         std::to_string(alias.result) + ", which begins with it");
    }
    if (argument.untyped_data() == result.untyped_data()) continue;
    std::memcpy(result.untyped_data(), argument.untyped_data(), result.size_bytes());
  }
}

ffi::Error Execute(RegionState* state, ffi::Span<const int64_t>, ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  try {
    const Program& program = state->program;
    const size_t n_args = static_cast<size_t>(program.n_args), n_results = static_cast<size_t>(program.n_results);
    if (arguments.size() != n_args || results.size() != n_results) {
      throw ProgramError("region program: called with " + std::to_string(arguments.size()) + " arguments and " +
                         std::to_string(results.size()) + " results, it has " + std::to_string(n_args) + " and " +
                         std::to_string(n_results));
    }
    std::vector<uint8_t*> buffers(n_args + n_results);
    for (size_t i = 0; i < n_args; ++i) {
      buffers[i] = Checked(arguments.get<ffi::AnyBuffer>(i).value(), program.needs[i], "argument", i);
    }
    for (size_t i = 0; i < n_results; ++i) {
      buffers[n_args + i] = Checked(*results.get<ffi::AnyBuffer>(i).value(), program.needs[n_args + i], "result", i);
    }
    Begin(program, arguments, results);
    state->Current()->Run(buffers.data());
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, error.what());
  } catch (...) {
    return ffi::Error(ffi::ErrorCode::kInternal, "region program: unknown failure");
  }
}

}  // namespace
}  // namespace jaxq8

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxq8_native_instantiate, jaxq8::Instantiate,
                              ffi::Ffi::BindInstantiate().Attr<ffi::Span<const int64_t>>("program"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxq8_native_execute, jaxq8::Execute,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::State<jaxq8::RegionState>>()
                                  .Attr<ffi::Span<const int64_t>>("program")
                                  .RemainingArgs()
                                  .RemainingRets());

extern "C" XLA_FFI_TypeId* jaxq8_native_type_id() { return &jaxq8::RegionState::id; }
extern "C" XLA_FFI_TypeInfo* jaxq8_native_type_info() { return &jaxq8::RegionState::info; }
#pragma GCC visibility pop
