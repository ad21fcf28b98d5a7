// The elements of a view in the order of the indices of a step.
#pragma once

#include <algorithm>

#include "program.h"

namespace jaxq8 {

// A view's own axes, merged where they lie one in the other. Axes that it is broadcast along have stride 0.
struct Walk {
  Tensor tensor;
  int rank = 0;
  int64_t dims[kMaxRank], strides[kMaxRank];

  Walk(const Tensor& t, const int64_t* step_dims) : tensor(t) {
    for (int i = 0; i < t.rank; ++i) {
      const int64_t dim = step_dims[i], stride = t.dims[i] == 1 ? 0 : t.strides[i];
      if (dim == 1) continue;
      if (rank && strides[rank - 1] == dim * stride) {
        dims[rank - 1] *= dim;
        strides[rank - 1] = stride;
      } else {
        dims[rank] = dim;
        strides[rank] = stride;
        ++rank;
      }
    }
    if (rank == 0) {
      rank = 1;
      dims[0] = 1;
      strides[0] = 0;
    }
  }

  int64_t last_dim() const { return dims[rank - 1]; }
  int64_t last_stride() const { return strides[rank - 1]; }
  bool flat() const { return rank == 1; }

  // Whether all rows, the last axis, are the same.
  bool periodic() const { return std::count(strides, strides + rank - 1, 0) == rank - 1; }

  // Where the element of an index lies.
  int64_t Offset(int64_t index) const {
    int64_t at = 0;
    for (int i = rank - 1; i > 0; --i) {
      at += index % dims[i] * strides[i];
      index /= dims[i];
    }
    return at + index * strides[0];
  }

  // The view of one number for each row of this length, where all elements of such a row are the same.
  Walk Numbers(int64_t row) const {
    Walk out = *this;
    out.dims[rank - 1] /= row;
    if (out.dims[rank - 1] == 1 && rank > 1) --out.rank;
    return out;
  }

  // Calls row(offset of the first element, stride, position in the block, n) for the pieces of rows in begin..begin + n.
  template <typename F>
  void Rows(int64_t begin, int64_t n, const F& row) const {
    const int last = rank - 1;
    if (last == 0) return row(begin * strides[0], strides[0], int64_t{0}, n);
    int64_t index[kMaxRank], rest = begin, at = 0;
    for (int i = last; i >= 0; --i) {
      index[i] = i ? rest % dims[i] : rest;
      rest /= dims[i];
      at += index[i] * strides[i];
    }
    for (int64_t done = 0; done < n;) {
      const int64_t piece = std::min(dims[last] - index[last], n - done);
      row(at, strides[last], done, piece);
      done += piece;
      if (done == n) return;
      at -= index[last] * strides[last];
      index[last] = 0;
      for (int i = last - 1; i >= 0; --i) {
        at += strides[i];
        if (++index[i] < dims[i]) break;
        at -= index[i] * strides[i];
        index[i] = 0;
      }
    }
  }
};

}  // namespace jaxq8
