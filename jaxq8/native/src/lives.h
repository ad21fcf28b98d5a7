// Which tensors steps read and write, and until when what was written is wanted.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "program.h"

namespace jaxq8 {

std::vector<int> ReadsOf(const Step& step);
std::vector<int> WritesOf(const Step& step);

class Lives {
 public:
  explicit Lives(const Program& program);

  const std::vector<int>& reads(size_t step) const { return reads_[step]; }
  const std::vector<int>& writes(size_t step) const { return writes_[step]; }

  // The last step that reads what a step has written to a tensor in the arena; that step itself if none does. It may be too late
  // a step where views with gaps are written, never too early a one.
  size_t LastRead(int tensor, size_t writer);

 private:
  size_t Find(const Tensor& tensor, size_t writer) const;

  const Program& program_;
  std::vector<std::vector<int>> reads_, writes_;
  std::map<std::pair<int, size_t>, size_t> found_;
};

}  // namespace jaxq8
