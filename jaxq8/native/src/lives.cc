#include "lives.h"

#include <algorithm>

namespace jaxq8 {
namespace {

void AddTo(std::vector<int>& ids, std::initializer_list<int> more) {
  for (int id : more) {
    if (id >= 0) ids.push_back(id);
  }
}

struct Reads {
  std::vector<int> ids;

  void operator()(const Contract& s) { AddTo(ids, {s.src, s.weights, s.mult, s.offset, s.residual, s.rescale, s.shift}); }
  void operator()(const Elementwise& s) { ids = s.inputs; }
  void operator()(const Copy& s) { AddTo(ids, {s.src}); }
  void operator()(const Fill& s) { AddTo(ids, {s.value}); }
  void operator()(const Pool& s) { AddTo(ids, {s.src, s.border}); }
  void operator()(const Reduce& s) { AddTo(ids, {s.src}); }
  void operator()(const Product& s) { AddTo(ids, {s.a, s.b}); }
  void operator()(const Loop& s) { ids = s.inputs; }
  void operator()(const Placed& s) {
    ids = {s.src};
    if (s.into) ids.push_back(s.dst);  // what is not written over stays, as if it had been read
    for (int id : s.starts) AddTo(ids, {id});
  }
};

struct Writes {
  std::vector<int> ids;

  void operator()(const Elementwise& s) { ids = s.outputs; }
  void operator()(const Loop& s) {
    ids = s.outputs;
    for (int id : s.spares) AddTo(ids, {id});
  }
  template <typename S>
  void operator()(const S& s) {
    AddTo(ids, {s.dst});
  }
};

using Range = std::pair<int64_t, int64_t>;

Range RangeOf(const Tensor& t) { return {t.offset, t.offset + t.extent()}; }

bool Meet(const Range& a, const Range& b) { return a.first < b.second && b.first < a.second; }

}  // namespace

std::vector<int> ReadsOf(const Step& step) {
  Reads reads;
  std::visit(reads, step);
  return std::move(reads.ids);
}

std::vector<int> WritesOf(const Step& step) {
  Writes writes;
  std::visit(writes, step);
  return std::move(writes.ids);
}

Lives::Lives(const Program& program) : program_(program) {
  for (const Step& step : program.steps) {
    reads_.push_back(ReadsOf(step));
    writes_.push_back(WritesOf(step));
  }
}

size_t Lives::LastRead(int tensor, size_t writer) {
  const auto key = std::make_pair(tensor, writer);
  const auto found = found_.find(key);
  if (found != found_.end()) return found->second;
  return found_[key] = Find(program_.tensors[static_cast<size_t>(tensor)], writer);
}

size_t Lives::Find(const Tensor& tensor, size_t writer) const {
  const auto at = [&](int id) -> const Tensor& { return program_.tensors[static_cast<size_t>(id)]; };
  std::vector<Range> left{RangeOf(tensor)};  // the bytes that nothing has been written over since
  size_t last = writer;
  for (size_t i = writer + 1; i < program_.steps.size() && !left.empty(); ++i) {
    for (int id : reads_[i]) {
      if (at(id).place != kArena) continue;
      const Range read = RangeOf(at(id));
      if (std::any_of(left.begin(), left.end(), [&](const Range& range) { return Meet(range, read); })) last = i;
    }
    for (int id : writes_[i]) {
      const Tensor& t = at(id);
      if (t.same_view(tensor) && t.dtype == tensor.dtype) return last;
      if (t.place != kArena || !t.dense()) continue;
      const Range written = RangeOf(t);
      std::vector<Range> still;
      for (const Range& range : left) {
        if (!Meet(range, written)) {
          still.push_back(range);
          continue;
        }
        if (range.first < written.first) still.emplace_back(range.first, written.first);
        if (written.second < range.second) still.emplace_back(written.second, range.second);
      }
      left = std::move(still);
    }
  }
  return last;
}

}  // namespace jaxq8
