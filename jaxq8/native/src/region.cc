#include "region.h"

#include "conductor.h"
#include "onednn.h"
#include "parallel.h"

namespace jaxq8 {
namespace {

constexpr size_t kMostFreeLanes = 4;  // more calls than that at once are rare, and an arena may be large

}  // namespace

Region::Region(const Program& program)
    : arena_bytes_((program.arena_bytes + 63) / 64 * 64), threads_(Threads()), forks_(Forks()) {
  const auto tensor = [&](int id) -> const Tensor& { return program.tensors[static_cast<size_t>(id)]; };
  const ThreadsScope scope(threads_);
  Collector collector{program, {}, 0, 0, 0};
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    names_.push_back("step " + std::to_string(i) + " " + NameOf(step));
    collector.BeginStep();
    try {
      if (const auto* contract = std::get_if<Contract>(&step)) {
        CollectContract(collector, *contract);
      } else if (const auto* elementwise = std::get_if<Elementwise>(&step)) {
        collector.actions.push_back(MakeElementwise(program, *elementwise));
      } else if (const auto* copy = std::get_if<Copy>(&step)) {
        collector.actions.push_back(MakeCopy(tensor(copy->src), tensor(copy->dst)));
      } else if (const auto* fill = std::get_if<Fill>(&step)) {
        collector.actions.push_back(MakeFill(program, *fill));
      } else if (const auto* reduce = std::get_if<Reduce>(&step)) {
        CollectReduce(collector, *reduce);
      } else if (const auto* product = std::get_if<Product>(&step)) {
        CollectProduct(collector, *product);
      } else {
        collector.actions.push_back(MakePool(program, std::get<Pool>(step)));
      }
    } catch (const std::exception& error) {
      throw ProgramError(names_.back() + ": " + error.what());
    }
    steps_.resize(collector.actions.size(), static_cast<int>(i));
  }
  actions_ = std::move(collector.actions);
  scratch_bytes_ = collector.most_scratch;
}

Region::~Region() = default;

Call Region::CallOf(Lane& lane, uint8_t* const* buffers) const { return {buffers, lane.arena, lane.arena + arena_bytes_, &lane}; }

std::unique_ptr<Lane> Region::Take() {
  {
    const Locked locked;
    if (!free_.empty()) {
      std::unique_ptr<Lane> lane = std::move(free_.back());
      free_.pop_back();
      return lane;
    }
  }
  auto lane = std::make_unique<Lane>(static_cast<size_t>(arena_bytes_ + scratch_bytes_));
  const Call call = CallOf(*lane, nullptr);
  for (const auto& action : actions_) action->Enter(*lane, call);
  return lane;
}

void Region::GiveBack(std::unique_ptr<Lane> lane) {
  const Locked locked;
  if (free_.size() < kMostFreeLanes) free_.push_back(std::move(lane));
}

void Region::Run(uint8_t* const* buffers) {
  struct Work {
    Region* region;
    uint8_t* const* buffers;
  } work{this, buffers};
  Conduct([](void* w) { static_cast<Work*>(w)->region->RunHere(static_cast<Work*>(w)->buffers); }, &work);
}

void Region::RunHere(uint8_t* const* buffers) {
  const ThreadsScope scope(threads_);
  std::unique_ptr<Lane> lane = Take();
  const Call call = CallOf(*lane, buffers);
  size_t i = 0;
  try {
    for (; i < actions_.size(); ++i) actions_[i]->Run(call);
    lane->stream.wait();
  } catch (const std::exception& error) {
    throw ProgramError((i < actions_.size() ? names_[static_cast<size_t>(steps_[i])] : "the end") + ": " + error.what());
  }
  GiveBack(std::move(lane));
}

std::string Region::Describe() const {
  std::string out;
  for (size_t i = 0; i < actions_.size(); ++i) {
    if (i == 0 || steps_[i] != steps_[i - 1]) {
      out += (i ? "\n" : "") + names_[static_cast<size_t>(steps_[i])] + ": ";
    } else {
      out += ", ";
    }
    out += actions_[i]->Describe();
  }
  return out;
}

}  // namespace jaxq8
