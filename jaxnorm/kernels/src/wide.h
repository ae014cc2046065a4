// The rows of a box of columns as wide rows: where a row is short, consecutive rows are taken for
// one wide row, and their copies of a channel are merged at the end.
#ifndef JAXNORM_WIDE_H_
#define JAXNORM_WIDE_H_

#include "mask.h"
#include "strip.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

constexpr int64_t kRunRows = 64;  // rows in a short run
constexpr int kTogether = 4;      // rows added at once

// A box of columns as wide rows.
struct Wide {
  int64_t columns;  // of the strip
  int64_t copies;   // of them in a wide row
  int64_t row;      // values from one row to the next
  int64_t stride() const { return copies * row; }
  int64_t width() const { return columns * copies; }
};

static inline Wide wide_of(const View& v, const Partition& p, const Box& box) {
  return {box.groups() * p.length, p.copies, v.G * p.length};
}

template <class Real>
inline void repeat(Real* columns, const Wide& wide) {
  for (int64_t j = wide.columns; j < wide.width(); ++j) columns[j] = columns[j - wide.columns];
}

// Calls each(offset, rows, width, whether they count) for all rows of the box as wide rows, where
// consecutive rows are alike; the last of those may be shorter. It returns whether it wants more.
template <class Each>
inline void for_each_wide(const Call& call, const Box& box, const Wide& wide, Each each) {
  bool more = true;
  for_each_alike(call, box, [&](int64_t begin, int64_t end, bool counts) {
    const int64_t rows = (end - begin) / wide.copies, rest = (end - begin) % wide.copies;
    const int64_t offset = (begin - box.r0) * wide.row;
    if (more && rows > 0) more = each(offset, rows, wide.width(), counts);
    if (more && rest > 0) {
      more = each(offset + rows * wide.stride(), 1, rest * wide.columns, counts);
    }
  });
}

template <class Value>
inline void clear(Value* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = 0;
}

template <class Real>
inline void drain(Real* run, double* sum, int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    sum[j] += run[j];
    run[j] = 0;
  }
}

// Calls add(offset, rows, width) for a few rows at once, of those that count or of those that do
// not, and drain() after every short run.
template <class Add, class Drain>
inline void in_short_runs(const Call& call, const Box& box, const Wide& wide, bool counted, Add add,
                          Drain drain) {
  int64_t run = 0;
  for_each_wide(call, box, wide, [&](int64_t at, int64_t rows, int64_t width, bool counts) {
    for (int64_t row = 0; counts == counted && row < rows;) {
      const int64_t first = row, end = smaller(rows, row + kRunRows - run);
      for (; row + kTogether <= end; row += kTogether) {
        add(at + row * wide.stride(), kTogether, width);
      }
      for (; row < end; ++row) add(at + row * wide.stride(), 1, width);
      run += end - first;
      if (run < kRunRows) continue;
      drain();
      run = 0;
    }
    return true;
  });
  if (run > 0) drain();
}

// Calls put(offset, width, whether it counts) for every wide row of the box.
template <class Put>
inline void for_each_put(const Call& call, const Box& box, const Wide& wide, Put put) {
  for_each_wide(call, box, wide, [&](int64_t at, int64_t rows, int64_t width, bool counts) {
    for (int64_t row = 0; row < rows; ++row) put(at + row * wide.stride(), width, counts);
    return true;
  });
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_WIDE_H_
