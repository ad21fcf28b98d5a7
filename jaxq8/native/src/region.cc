#include "region.h"

#include <algorithm>

#include "conductor.h"
#include "onednn.h"
#include "parallel.h"
#include "rows.h"

namespace jaxq8 {
namespace {

constexpr size_t kMostFreeLanes = 4;  // more calls than that at once are rare, and an arena may be large

// Collects the actions of one step.
void Collect(Collector& collector, const Step& step) {
  const Program& program = collector.program;
  if (const auto* contract = std::get_if<Contract>(&step)) {
    CollectContract(collector, *contract);
  } else if (const auto* elementwise = std::get_if<Elementwise>(&step)) {
    collector.actions.push_back(MakeElementwise(program, *elementwise));
  } else if (const auto* copy = std::get_if<Copy>(&step)) {
    const auto tensor = [&](int id) -> const Tensor& { return program.tensors[static_cast<size_t>(id)]; };
    collector.actions.push_back(MakeCopy(tensor(copy->src), tensor(copy->dst)));
  } else if (const auto* fill = std::get_if<Fill>(&step)) {
    collector.actions.push_back(MakeFill(program, *fill));
  } else if (const auto* reduce = std::get_if<Reduce>(&step)) {
    CollectReduce(collector, *reduce);
  } else if (const auto* product = std::get_if<Product>(&step)) {
    CollectProduct(collector, *product);
  } else if (const auto* loop = std::get_if<Loop>(&step)) {
    collector.actions.push_back(MakeLoop(program, *loop));
  } else if (const auto* placed = std::get_if<Placed>(&step)) {
    collector.actions.push_back(MakePlaced(program, *placed));
  } else {
    collector.actions.push_back(MakePool(program, std::get<Pool>(step)));
  }
}

}  // namespace

Region::Region(const Program& program)
    : arena_bytes_((program.arena_bytes + 63) / 64 * 64), threads_(Threads()), forks_(Forks()) {
  const ThreadsScope scope(threads_);
  Collector collector{program, {}, 0, 0, 0};
  Lives lives(program);
  for (size_t i = 0; i < program.steps.size();) {
    const RowGroup group = RowGroupAt(program, lives, i, threads_);
    const size_t n = std::max<size_t>(1, group.steps);
    for (size_t j = i; j < i + n; ++j) names_.push_back("step " + std::to_string(j) + " " + NameOf(program.steps[j]));
    try {
      if (group.steps) {
        collector.actions.push_back(MakeRows(program, i, group));
      } else {
        collector.BeginStep();
        Collect(collector, program.steps[i]);
      }
    } catch (const std::exception& error) {
      throw ProgramError(names_[i] + ": " + error.what());
    }
    steps_.resize(collector.actions.size(), i);
    i += n;
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
  RunIn(*lane, buffers);
  GiveBack(std::move(lane));
}

void Region::RunIn(Lane& lane, uint8_t* const* buffers) {
  const Call call = CallOf(lane, buffers);
  size_t i = 0;
  try {
    for (; i < actions_.size(); ++i) actions_[i]->Run(call);
    lane.stream.wait();
  } catch (const std::exception& error) {
    throw ProgramError((i < actions_.size() ? names_[steps_[i]] : "the end") + ": " + error.what());
  }
}

std::string Region::Describe() const {
  std::string out;
  size_t action = 0;
  for (size_t i = 0; i < names_.size(); ++i) {
    out += (i ? "\n" : "") + names_[i] + ": ";
    bool any = false;
    for (; action < actions_.size() && steps_[action] == i; ++action) {
      out += (any ? ", " : "") + actions_[action]->Describe();
      any = true;
    }
    if (!any) out += action ? "with step " + std::to_string(steps_[action - 1]) : "nothing";
  }
  return out;
}

}  // namespace jaxq8
