// REDUCE: sums and extremes along axes. Either the items of a result lie one behind the other, and are read as runs; or many
// results lie one beside the other, and take row after row. Threads share the results, or the items where results are few.
#include <algorithm>
#include <vector>

#include "onednn.h"
#include "parallel.h"
#include "reduce_kernels.h"

namespace jaxq8 {
namespace {

constexpr int64_t kColumns = 1024;   // results side by side that stay in the first cache
constexpr int64_t kRowsAtOnce = 128;  // floats of so many rows are summed before they are added to the total

struct Axis {
  int64_t dim, src, dst;
};
using Axes = std::vector<Axis>;

int64_t CountOf(const Axes& axes) {
  int64_t n = 1;
  for (const Axis& axis : axes) n *= axis.dim;
  return n;
}

// The offsets of an index in both tensors.
void Offsets(const Axes& axes, int64_t index, int64_t* src, int64_t* dst) {
  for (size_t i = axes.size(); i-- > 0;) {
    const int64_t here = i ? index % axes[i].dim : index;
    if (i) index /= axes[i].dim;
    *src += here * axes[i].src;
    *dst += here * axes[i].dst;
  }
}

// Axes in the order in which they lie in src, neighbours merged.
Axes Merged(Axes axes) {
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.src > b.src; });
  Axes out;
  for (const Axis& axis : axes) {
    if (!out.empty() && out.back().src == axis.dim * axis.src && out.back().dst == axis.dim * axis.dst) {
      out.back() = {out.back().dim * axis.dim, axis.src, axis.dst};
    } else {
      out.push_back(axis);
    }
  }
  return out;
}

struct Layout {
  Tensor src, dst;
  Axes kept, reduced;          // but for the inner one
  Axis inner{1, 1, 0};         // the columns if there are columns, else the run
  bool columns = false;
  int64_t results = 1, rows = 1;  // how often the inner axis lies in dst, and how often in each of them in src
  int64_t splits = 1;          // parts of the rows or of the run's pieces that threads work on
  int64_t partials = 0;        // where the parts' results are in scratch memory

  int64_t pieces() const { return (inner.dim + kRun - 1) / kRun; }                // of a run
  int64_t tiles() const { return (inner.dim + kColumns - 1) / kColumns; }        // of columns
  int64_t bytes() const { return src.count() * SizeOf(src.dtype) + dst.count() * 4; }
};

Layout LayoutOf(const Tensor& src, const Tensor& dst) {
  Layout out;
  out.src = src;
  out.dst = dst;
  Axes kept, reduced;
  for (int i = 0; i < src.rank; ++i) {
    if (src.dims[i] == 1) continue;
    if (dst.dims[i] == src.dims[i]) {
      kept.push_back({src.dims[i], src.strides[i], dst.strides[i]});
    } else {
      reduced.push_back({src.dims[i], src.strides[i], 0});
    }
  }
  kept = Merged(std::move(kept));
  reduced = Merged(std::move(reduced));
  out.columns = !kept.empty() && kept.back().src == 1;
  Axes& inner = out.columns ? kept : reduced;
  if (!inner.empty()) {
    out.inner = inner.back();
    inner.pop_back();
  }
  out.results = CountOf(kept);
  out.rows = CountOf(reduced);
  out.kept = std::move(kept);
  out.reduced = std::move(reduced);
  const int64_t tasks = out.columns ? out.results * out.tiles() : out.results;
  const int64_t parts = out.columns ? out.rows / 64 : out.rows * out.pieces();
  const int64_t threads = Threads();
  if (tasks % threads && tasks < 4 * threads && out.bytes() > 192 << 10) {
    out.splits = std::max<int64_t>(1, std::min(threads, parts));
  }
  return out;
}

template <typename Op>
class ReduceAction final : public Action {
 public:
  using Item = typename Op::Item;
  using Out = typename Op::Out;
  using Total = typename Op::Total;

  ReduceAction(Collector& collector, Layout layout) : l_(std::move(layout)) {
    if (l_.splits > 1) {
      const int64_t bytes = l_.columns ? l_.results * l_.inner.dim * static_cast<int64_t>(sizeof(Out))
                                       : l_.results * static_cast<int64_t>(sizeof(Total));
      l_.partials = collector.Scratch(static_cast<size_t>(l_.splits * bytes));
    }
  }

  void Run(const Call& call) const override {
    const Item* src = reinterpret_cast<const Item*>(call.At(l_.src));
    Out* dst = reinterpret_cast<Out*>(call.At(l_.dst));
    uint8_t* partials = call.At(kScratch, l_.partials);
    l_.columns ? Columns(src, dst, reinterpret_cast<Out*>(partials)) : Runs(src, dst, reinterpret_cast<Total*>(partials));
  }

  std::string Describe() const override { return l_.columns ? "reduction of columns" : "reduction of runs"; }

 private:
  void Runs(const Item* src, Out* dst, Total* partials) const {
    const int64_t pieces = l_.pieces(), all = l_.rows * pieces, splits = l_.splits;
    Parallel(l_.results * splits, l_.bytes(), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t result = task / splits, split = task % splits;
        int64_t from = 0, to = 0;
        Offsets(l_.kept, result, &from, &to);
        Total total = Op::Start();
        for (int64_t piece = all * split / splits; piece < all * (split + 1) / splits; ++piece) {
          int64_t at = from, none = 0;
          Offsets(l_.reduced, piece / pieces, &at, &none);
          const int64_t first = piece % pieces * kRun, n = std::min(kRun, l_.inner.dim - first);
          total = Op::Join(total, ReduceLongRun<Op>(src + at + first * l_.inner.src, n, l_.inner.src));
        }
        if (splits > 1) {
          partials[task] = total;
        } else {
          dst[to] = static_cast<Out>(total);
        }
      }
    });
    for (int64_t result = 0; splits > 1 && result < l_.results; ++result) {
      Total total = Op::Start();
      for (int64_t i = 0; i < splits; ++i) total = Op::Join(total, partials[result * splits + i]);
      int64_t from = 0, to = 0;
      Offsets(l_.kept, result, &from, &to);
      dst[to] = static_cast<Out>(total);
    }
  }

  void Columns(const Item* src, Out* dst, Out* partials) const {
    const int64_t tiles = l_.tiles(), splits = l_.splits, n = l_.inner.dim, width = l_.results * n;
    Parallel(l_.results * tiles * splits, l_.bytes(), [&](int64_t begin, int64_t end) {
      alignas(64) Out acc[kColumns];
      for (int64_t task = begin; task < end; ++task) {
        const int64_t split = task % splits, tile = task / splits % tiles, result = task / splits / tiles;
        const int64_t first = n * tile / tiles, columns = n * (tile + 1) / tiles - first;
        int64_t from = first, to = first * l_.inner.dst;
        Offsets(l_.kept, result, &from, &to);
        Take(src + from, l_.rows * split / splits, l_.rows * (split + 1) / splits, columns, acc);
        if (splits > 1) {
          std::copy(acc, acc + columns, partials + split * width + result * n + first);
        } else {
          for (int64_t i = 0; i < columns; ++i) dst[to + i * l_.inner.dst] = acc[i];
        }
      }
    });
    for (int64_t result = 0; splits > 1 && result < l_.results; ++result) {
      Out* total = partials + result * n;
      for (int64_t i = 1; i < splits; ++i) TakeOuts(total, total + i * width, n);
      int64_t from = 0, to = 0;
      Offsets(l_.kept, result, &from, &to);
      for (int64_t i = 0; i < n; ++i) dst[to + i * l_.inner.dst] = total[i];
    }
  }

  template <typename A>
  static void TakeOuts(A* acc, const Out* x, int64_t n) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) acc[i] = Op::Join(acc[i], static_cast<A>(x[i]));
  }

  // Rows begin..end of some columns. Floats are summed in parts, so that rounding does not grow with their number.
  void Take(const Item* src, int64_t begin, int64_t end, int64_t columns, Out* acc) const {
    std::fill(acc, acc + columns, Op::Start());
    if (!Op::kRounds || end - begin <= kRowsAtOnce) return TakeAll(src, begin, end, columns, acc);
    alignas(64) Total total[kColumns];
    std::fill(total, total + columns, Total{Op::Start()});
    for (int64_t row = begin; row < end; row += kRowsAtOnce) {
      std::fill(acc, acc + columns, Op::Start());
      TakeAll(src, row, std::min(end, row + kRowsAtOnce), columns, acc);
      TakeOuts(total, acc, columns);
    }
    for (int64_t i = 0; i < columns; ++i) acc[i] = static_cast<Out>(total[i]);
  }

  void TakeAll(const Item* src, int64_t begin, int64_t end, int64_t columns, Out* acc) const {
    const auto at = [&](int64_t row) {
      int64_t offset = 0, none = 0;
      Offsets(l_.reduced, row, &offset, &none);
      return src + offset;
    };
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) {
      const Item* const rows[] = {at(row), at(row + 1), at(row + 2), at(row + 3)};
      TakeRows<Op>(acc, rows, columns);
    }
    for (; row < end; ++row) TakeRow<Op>(acc, at(row), columns);
  }

  Layout l_;
};

template <template <typename> typename Op>
std::unique_ptr<Action> Make(Collector& collector, Layout layout) {
  switch (layout.src.dtype) {
    case Dtype::kU8: return std::make_unique<ReduceAction<Op<uint8_t>>>(collector, std::move(layout));
    case Dtype::kS8: return std::make_unique<ReduceAction<Op<int8_t>>>(collector, std::move(layout));
    case Dtype::kS32: return std::make_unique<ReduceAction<Op<int32_t>>>(collector, std::move(layout));
    default: return std::make_unique<ReduceAction<Op<float>>>(collector, std::move(layout));
  }
}

}  // namespace

void CollectReduce(Collector& collector, const Reduce& step) {
  const Tensor &src = collector.program.tensors[static_cast<size_t>(step.src)];
  const Tensor &dst = collector.program.tensors[static_cast<size_t>(step.dst)];
  if (dst.count() == 0) return;
  if (src.count() == 0) {  // a sum of nothing
    collector.actions.push_back(MakeFill(collector.program, Fill{step.dst, -1, 0}));
    return;
  }
  Layout layout = LayoutOf(src, dst);
  switch (step.kind) {
    case ReduceKind::kSum: return collector.actions.push_back(Make<SumOf>(collector, std::move(layout)));
    case ReduceKind::kMax: return collector.actions.push_back(Make<LargestOf>(collector, std::move(layout)));
    case ReduceKind::kMin: return collector.actions.push_back(Make<SmallestOf>(collector, std::move(layout)));
    case ReduceKind::kNan: return collector.actions.push_back(std::make_unique<ReduceAction<NanOf>>(collector, std::move(layout)));
  }
}

}  // namespace jaxq8
