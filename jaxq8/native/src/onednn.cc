#include "onednn.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace jaxq8 {

const dnnl::engine& Engine() {
  static const dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);  // never destroyed, see parallel.cc
  return *engine;
}

Lane::Lane(size_t bytes) : arena(nullptr), stream(Engine()) {
  arena = static_cast<uint8_t*>(std::aligned_alloc(64, std::max<size_t>(64, (bytes + 63) / 64 * 64)));
  if (!arena) throw ProgramError("no memory for an arena of " + std::to_string(bytes) + " bytes");
}

Lane::~Lane() { std::free(arena); }

void PrimitiveAction::Enter(Lane& lane, const Call& call) const {
  std::vector<dnnl::memory> memories;
  std::vector<dnnl_exec_arg_t> arguments;
  for (const Argument& a : arguments_) {
    memories.emplace_back(a.desc, Engine(), a.place < 0 ? call.At(a.place, a.offset) : nullptr);
    arguments.push_back({a.name, memories.back().get()});
  }
  lane.memories.resize(std::max(lane.memories.size(), number_ + 1));
  lane.arguments.resize(lane.memories.size());
  lane.memories[number_] = std::move(memories);
  lane.arguments[number_] = std::move(arguments);
}

void PrimitiveAction::Run(const Call& call) const {
  std::vector<dnnl::memory>& memories = call.lane->memories[number_];
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const Argument& a = arguments_[i];
    if (a.place >= 0) memories[i].set_data_handle(call.At(a.place, a.offset));
  }
  const std::vector<dnnl_exec_arg_t>& arguments = call.lane->arguments[number_];
  dnnl::error::wrap_c_api(dnnl_primitive_execute(primitive_.get(), call.lane->stream.get(), static_cast<int>(arguments.size()),
                                                 arguments.data()),
                          "oneDNN could not execute it");
}

int BadnessOf(const std::string& implementation) {
  const auto contains = [&](const char* part) { return implementation.find(part) != std::string::npos; };
  if (contains("ref") || contains("simple")) return 2;
  return contains("gemm") && !contains("brg") ? 1 : 0;
}

void Collector::Add(const dnnl::primitive& primitive, const dnnl::primitive_desc_base& description,
                    std::vector<Argument> arguments, std::string text) {
  const dnnl::memory::desc scratchpad = description.scratchpad_desc();
  if (scratchpad.get_size()) {
    arguments.push_back({DNNL_ARG_SCRATCHPAD, scratchpad, kScratch, Scratch(scratchpad.get_size())});
  }
  actions.push_back(std::make_unique<PrimitiveAction>(primitive, std::move(arguments), primitives++, std::move(text)));
}

}  // namespace jaxq8
