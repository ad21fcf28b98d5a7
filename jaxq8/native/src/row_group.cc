#include "row_group.h"

#include <algorithm>
#include <optional>

namespace jaxq8 {
namespace {

constexpr size_t kMostSteps = 16;               // of a group
constexpr int64_t kBlockBytes = 64 << 10;       // of a block of rows, over all tensors
constexpr int64_t kMostOwnRowBytes = 16 << 10;  // of a tensor in a group's own memory
constexpr int64_t kMostRowBytes = 1 << 20;      // larger rows fill the second cache alone
constexpr int64_t kSmall = 192 << 10;           // bytes that one thread moves alone, whatever the rows are

// The rows of a tensor that has an element for each index: where they lie.
struct Rows {
  int64_t stride = 0;   // between rows
  int64_t n = 1;        // elements of a row
  int64_t within = 1;   // between elements of a row
};

// What a step with these sizes sees in each of its rows of a tensor; nothing if they have not one stride, or share elements.
std::optional<Rows> RowsOf(const Tensor& t, const int64_t* dims, int64_t rows) {
  Rows out;
  int64_t before = 1;
  int axis = 0;
  bool any = false;
  for (; axis < t.rank && before < rows; ++axis) {
    if (t.dims[axis] != dims[axis]) return std::nullopt;
    if (t.dims[axis] == 1) continue;
    if (any && out.stride != t.dims[axis] * t.strides[axis]) return std::nullopt;
    out.stride = t.strides[axis];
    before *= t.dims[axis];
    any = true;
  }
  if (before != rows) return std::nullopt;
  for (; axis < t.rank; ++axis) {
    if (t.dims[axis] == 1) continue;
    if (out.n > 1 && out.within != t.dims[axis] * t.strides[axis]) return std::nullopt;
    out.within = t.strides[axis];
    out.n *= t.dims[axis];
  }
  return out;
}

// Whether the axes fall into rows and what lies in them.
bool Falls(const int64_t* dims, int rank, int64_t rows) {
  int64_t before = 1;
  for (int axis = 0; axis < rank && before < rows; ++axis) before *= dims[axis];
  return before == rows;
}

class Finder {
 public:
  Finder(const Program& program, Lives& lives, size_t first) : program_(program), lives_(lives), first_(first) {}

  // The longest group of so many rows.
  RowGroup Longest(int64_t rows) {
    RowGroup best;
    touches_.clear();
    for (size_t i = first_; i < program_.steps.size() && i < first_ + kMostSteps; ++i) {
      if (!Take(i, rows)) break;
      if (i > first_ && Holds(i)) best.steps = i + 1 - first_;
    }
    best.rows = rows;
    return best;
  }

  // Decides the block and moves to memory of their own the tensors that nobody else reads.
  void Finish(RowGroup& group) {
    touches_.clear();
    const size_t last = first_ + group.steps - 1;
    for (size_t i = first_; i <= last; ++i) Take(i, group.rows);
    int64_t row_bytes = 0, own_bytes = 0;
    std::vector<int> firsts;  // the first touch of each tensor that differs from those before
    for (size_t i = 0; i < touches_.size(); ++i) {
      const auto same = [&](int j) { return Same(touches_[i], touches_[static_cast<size_t>(j)]); };
      if (std::any_of(firsts.begin(), firsts.end(), same)) continue;
      firsts.push_back(static_cast<int>(i));
      const int64_t bytes = BytesOf(touches_[i]);
      row_bytes += bytes;
      if (IsOwn(touches_[i], last)) own_bytes += bytes + 64;
    }
    group.block = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(1, row_bytes), 1, group.rows);
    group.tensors = program_.tensors;
    if (own_bytes > kMostOwnBytes - kBlockBytes) group.steps = 0;
    for (int j : firsts) {
      const Touch& touch = touches_[static_cast<size_t>(j)];
      if (!IsOwn(touch, last)) continue;
      const int64_t bytes = BytesOf(touch);
      for (const Touch& other : touches_) {
        if (!Same(touch, other)) continue;
        Tensor& t = group.tensors[static_cast<size_t>(other.id)];
        t = At(other.id).densely(kOwn, group.own_bytes);
        t.row_bytes = bytes;
      }
      group.own_bytes += (group.block * bytes + 63) / 64 * 64;
    }
  }

  int64_t BytesOfAll(const RowGroup& group) const {
    int64_t bytes = 0;
    for (size_t i = first_; i < first_ + group.steps; ++i) {
      for (const auto* ids : {&lives_.reads(i), &lives_.writes(i)}) {
        for (int id : *ids) bytes += At(id).count() * SizeOf(At(id).dtype);
      }
    }
    return bytes;
  }

 private:
  // A tensor that a step reads or writes.
  struct Touch {
    int id;
    size_t step;
    bool writes;
    std::optional<Rows> rows;
  };

  const Tensor& At(int id) const { return program_.tensors[static_cast<size_t>(id)]; }

  // Notes what a step touches; false if it is none that goes row by row.
  bool Take(size_t i, int64_t rows) {
    const Step& step = program_.steps[i];
    const int64_t* dims;
    if (const auto* elementwise = std::get_if<Elementwise>(&step)) {
      dims = elementwise->dims;
      if (At(elementwise->outputs[0]).count() == 0 || !Falls(dims, elementwise->rank, rows)) return false;
    } else if (const auto* reduce = std::get_if<Reduce>(&step)) {
      dims = At(reduce->src).dims;
      if (At(reduce->src).count() == 0 || !RowsOf(At(reduce->src), dims, rows)) return false;
      const std::optional<Rows> dst = RowsOf(At(reduce->dst), dims, rows);
      if (!dst || dst->n != 1) return false;
    } else {
      return false;
    }
    for (int id : lives_.reads(i)) touches_.push_back({id, i, false, RowsOf(At(id), dims, rows)});
    for (int id : lives_.writes(i)) {
      const std::optional<Rows> written = RowsOf(At(id), dims, rows);
      if (!written || (rows > 1 && (written->n - 1) * written->within >= written->stride)) return false;
      touches_.push_back({id, i, true, written});
    }
    return true;
  }

  // Whether two touches are of the same rows of the same memory.
  bool Same(const Touch& a, const Touch& b) const {
    const Tensor &x = At(a.id), &y = At(b.id);
    return a.rows && b.rows && x.place == y.place && x.offset == y.offset && SizeOf(x.dtype) == SizeOf(y.dtype) &&
           a.rows->n == b.rows->n && a.rows->stride == b.rows->stride && (a.rows->n == 1 || a.rows->within == b.rows->within);
  }

  // The steps between which the rows of a touch are touched, and whether they are written first.
  struct Life {
    size_t first, last;
    bool begins;
    const Touch* writer;  // the last one
  };

  Life LifeOf(const Touch& touch) const {
    Life life{touch.step, touch.step, touch.writes, nullptr};
    bool any = false;
    for (const Touch& other : touches_) {
      if (!Same(touch, other)) continue;
      if (!any) life = {other.step, other.step, other.writes, nullptr};
      any = true;
      life.last = other.step;
      if (other.writes) life.writer = &other;
    }
    return life;
  }

  // Whether a tensor is written in the group before it is read there, and is read in these rows and nowhere else. Others may
  // lie over it before and after.
  bool IsOwn(const Touch& touch, size_t last) const {
    if (At(touch.id).place != kArena || !touch.rows || BytesOf(touch) > kMostOwnRowBytes) return false;
    const Life life = LifeOf(touch);
    if (!life.begins || lives_.LastRead(life.writer->id, life.writer->step) > last) return false;
    for (const Touch& other : touches_) {
      if (Same(touch, other) || !At(touch.id).overlaps(At(other.id))) continue;
      const Life others = LifeOf(other);
      if (others.last >= life.first && !(others.begins && life.last < others.first)) return false;
    }
    return true;
  }

  // Whether the steps up to this one may run row by row: what one of them writes in memory that all see, others touch in the
  // same rows or not at all.
  bool Holds(size_t last) const {
    std::vector<char> own;
    for (const Touch& touch : touches_) own.push_back(IsOwn(touch, last));
    for (size_t i = 0; i < touches_.size(); ++i) {
      if (!touches_[i].writes || own[i]) continue;
      for (size_t j = 0; j < touches_.size(); ++j) {
        if (own[j] || !At(touches_[i].id).overlaps(At(touches_[j].id))) continue;
        if (!Same(touches_[i], touches_[j])) return false;
      }
    }
    return true;
  }

  // Of a row.
  int64_t BytesOf(const Touch& touch) const { return touch.rows ? touch.rows->n * SizeOf(At(touch.id).dtype) : 0; }

  const Program& program_;
  Lives& lives_;
  size_t first_;
  std::vector<Touch> touches_;
};

// The number of rows that a step suggests: what is before the last axis, or the results of a reduction.
int64_t Suggested(const Program& program, const Step& step) {
  const auto at = [&](int id) -> const Tensor& { return program.tensors[static_cast<size_t>(id)]; };
  if (const auto* reduce = std::get_if<Reduce>(&step)) return at(reduce->dst).count();
  const auto* elementwise = std::get_if<Elementwise>(&step);
  if (!elementwise) return 0;
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < elementwise->rank; ++axis) rows *= elementwise->dims[axis];
  return at(elementwise->outputs[0]).count() ? rows : 0;
}

}  // namespace

RowGroup RowGroupAt(const Program& program, Lives& lives, size_t first, int threads) {
  Finder finder(program, lives, first);
  RowGroup best;
  std::vector<int64_t> tried;
  for (size_t i = first; i < program.steps.size() && i < first + kMostSteps; ++i) {
    const int64_t rows = Suggested(program, program.steps[i]);
    if (rows == 0) break;
    if (std::find(tried.begin(), tried.end(), rows) != tried.end()) continue;
    tried.push_back(rows);
    RowGroup group = finder.Longest(rows);
    if (group.steps <= best.steps || group.steps < 2) continue;
    // Few rows leave threads without work, and long ones the caches without use.
    const int64_t bytes = finder.BytesOfAll(group);
    if (bytes > kSmall && threads > 1 && rows < 4 * threads) continue;
    if (bytes / rows > kMostRowBytes) continue;
    best = std::move(group);
  }
  if (best.steps) finder.Finish(best);
  return best;
}

}  // namespace jaxq8
