// oneDNN's descriptors of a contraction's tensors.
#pragma once

#include <algorithm>

#include "onednn.h"

namespace jaxq8 {

using Desc = dnnl::memory::desc;
using Type = dnnl::memory::data_type;
using Dims = dnnl::memory::dims;

inline Type TypeOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kU8: return Type::u8;
    case Dtype::kS8: return Type::s8;
    case Dtype::kS32: return Type::s32;
    default: return Type::f32;
  }
}

// oneDNN counts axes as (batch, channels, spatial...), whatever the order in memory.
inline Dims ChannelsSecond(const int64_t* values, int rank) {
  Dims out{values[0], values[rank - 1]};
  out.insert(out.end(), values + 1, values + rank - 1);
  return out;
}

// An image or a matrix as it lies. The stride of an axis of size 1 means nothing, and oneDNN compares it.
inline Desc DescOf(const Tensor& t) {
  const Tensor view = t.dense() ? t.densely(t.place, t.offset) : t;
  return Desc(ChannelsSecond(view.dims, view.rank), TypeOf(t.dtype), ChannelsSecond(view.strides, view.rank));
}

inline Dims WeightDims(int ns, int64_t c_in, int64_t c_out, const int64_t* kernel, int64_t groups) {
  if (ns == 0) return {c_in, c_out};
  Dims out{c_out / groups, c_in / groups};
  if (groups > 1) out.insert(out.begin(), groups);
  out.insert(out.end(), kernel, kernel + ns);
  return out;
}

// The bit mask of a scale for each output channel.
inline int ChannelMask(int ns, int64_t groups) { return ns == 0 ? 2 : groups > 1 ? 3 : 1; }

// A contraction's descriptor; empty where oneDNN has none.
struct Geometry {
  int ns;
  const int64_t *strides, *dilation, *low, *high;

  dnnl::convolution_forward::primitive_desc Convolution(const Desc& src, const Desc& weights, const Desc& bias, const Desc& dst,
                                                        const dnnl::primitive_attr& attr) const {
    Dims dilated(dilation, dilation + ns);
    for (auto& d : dilated) d -= 1;  // oneDNN counts the gaps
    const Dims s(strides, strides + ns), l(low, low + ns), h(high, high + ns);
    const auto kind = dnnl::prop_kind::forward_inference;
    const auto algorithm = dnnl::algorithm::convolution_direct;
    if (bias.get_ndims()) {
      return dnnl::convolution_forward::primitive_desc(Engine(), kind, algorithm, src, weights, bias, dst, s, dilated, l, h, attr,
                                                       true);
    }
    return dnnl::convolution_forward::primitive_desc(Engine(), kind, algorithm, src, weights, dst, s, dilated, l, h, attr, true);
  }

  static dnnl::matmul::primitive_desc Matmul(const Desc& src, const Desc& weights, const Desc& bias, const Desc& dst,
                                             const dnnl::primitive_attr& attr) {
    if (bias.get_ndims()) return dnnl::matmul::primitive_desc(Engine(), src, weights, bias, dst, attr, true);
    return dnnl::matmul::primitive_desc(Engine(), src, weights, dst, attr, true);
  }
};

}  // namespace jaxq8
