// Which values count.
//
// A value that does not count adds nothing to the moments. It is still standardized where that
// yields a finite value, and the derivative of that value is that of any other; where it does not,
// the value is replaced by the bias, and has no derivative but the bias's.
#ifndef JAXNORM_MASK_H_
#define JAXNORM_MASK_H_

#include <cstring>

#include "call.h"
#include "partition.h"

namespace jaxnorm {
inline namespace JAXNORM_ISA {

// Bytes for one a.
static inline int64_t mask_width(const View& v, const Mask& mask) {
  return mask.rows * (mask.by_g ? v.G : 1) * (mask.by_t ? v.T : 1);
}

static inline const uint8_t* mask_of(const Call& call, int64_t a) {
  return call.mask.data + a / call.mask.share * mask_width(call.view, call.mask);
}

// Consecutive r that share a byte.
static inline int64_t rows_alike(const Call& call) { return call.view.R / call.mask.rows; }

static inline int64_t bytes_that_count(const uint8_t* bytes, int64_t n) {
  constexpr int64_t block = 128;  // a byte holds their number
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = smaller(n, begin + block);
    uint8_t some = 0;
    for (int64_t i = begin; i < end; ++i) some = static_cast<uint8_t>(some + (bytes[i] != 0));
    count += some;
  }
  return count;
}

// The end of the bytes from `first` on that are alike, eight at a time where they are 0 or 1.
static inline int64_t end_of_alike(const uint8_t* bytes, int64_t first, int64_t n) {
  const bool counts = bytes[first] != 0;
  const uint64_t eight = counts ? 0x0101010101010101u : 0;
  int64_t end = first + 1;
  for (uint64_t next; end + 8 <= n; end += 8) {
    std::memcpy(&next, bytes + end, sizeof next);
    if (next != eight) break;
  }
  while (end < n && (bytes[end] != 0) == counts) ++end;
  return end;
}

// The values of one r: all count, or each has a byte (along G, or along T), or none counts.
struct Counted {
  bool all;
  const uint8_t* bytes;
};

static inline Counted counted_of(const Call& call, int64_t a, int64_t r) {
  if (call.mask.data == nullptr) return {true, nullptr};
  const uint8_t* bytes =
      mask_of(call, a) + r / rows_alike(call) * (call.mask.by_t ? call.view.T : 1);
  if (call.mask.by_g || call.mask.by_t) return {false, bytes};
  return {*bytes != 0, nullptr};
}

// Calls each(first, end, whether they count) for the r of the box, in runs that are alike. The mask
// does not vary along T; if it does along G, each group is measured as if all of it counted.
template <class Each>
inline void for_each_alike(const Call& call, const Box& box, Each each) {
  if (call.mask.by_g) return each(box.r0, box.r1, true);
  if (call.mask.data == nullptr) return each(box.r0, box.r1, true);
  const uint8_t* bytes = mask_of(call, box.a);
  const int64_t alike = rows_alike(call), last = ceil_div(box.r1, alike);
  for (int64_t r = box.r0; r < box.r1;) {
    const int64_t at = r / alike;
    const int64_t end = smaller(box.r1, alike * end_of_alike(bytes, at, last));
    each(r, end, bytes[at] != 0);
    r = end;
  }
}

// Calls each(first, end, t) for the runs of T values that lie in [l0, l1) of a group, or their part
// in it, which begins at t.
template <class Each>
inline void for_each_run_of_t(const View& v, int64_t l0, int64_t l1, Each each) {
  for (int64_t l = l0; l < l1;) {
    const int64_t end = smaller(l1, (l / v.T + 1) * v.T);
    each(l, end, l % v.T);
    l = end;
  }
}

// The values of a group that count in the box, or are measured as if they did.
inline double box_count(const Call& call, const Box& box) {
  if (call.mask.data == nullptr || call.mask.by_g) return box.count();
  int64_t count = 0;
  if (!call.mask.by_t) {
    for_each_alike(call, box, [&](int64_t begin, int64_t end, bool counts) {
      if (counts) count += end - begin;
    });
    return static_cast<double>(count * box.length());
  }
  for (int64_t r = box.r0; r < box.r1; ++r) {
    const uint8_t* bytes = counted_of(call, box.a, r).bytes;
    for_each_run_of_t(call.view, box.l0, box.l1, [&](int64_t begin, int64_t end, int64_t t) {
      count += bytes_that_count(bytes + t, end - begin);
    });
  }
  return static_cast<double>(count);
}

static inline int64_t counts_width(const Call& call) { return call.mask.by_g ? call.view.G : 1; }

static inline int64_t counts_size(const Call& call) {
  return call.mask.data == nullptr ? 0 : call.view.A * counts_width(call);
}

// Fills call.counts: how many values of every group of an a count, and of each group along G.
static inline void count_values(const Call& call) {
  const View& v = call.view;
  const int64_t width = counts_width(call), bytes = mask_width(v, call.mask) / width;
  const int64_t values = v.R * v.S * v.T / bytes;
  for (int64_t a = 0; a < v.A; ++a) {
    double* counts = call.counts + a * width;
    if (a % call.mask.share != 0) {
      for (int64_t i = 0; i < width; ++i) counts[i] = counts[i - width];
      continue;
    }
    for (int64_t i = 0; i < width; ++i) {
      counts[i] = static_cast<double>(values * bytes_that_count(mask_of(call, a) + i, bytes));
    }
  }
}

// The same for the values of a part of a run of T, from t on: whether all of them count is seen.
static inline Counted counted_part(const Counted& row, int64_t t, int64_t n) {
  if (row.bytes == nullptr) return row;
  const uint8_t* bytes = row.bytes + t;
  return {std::memchr(bytes, 0, static_cast<size_t>(n)) == nullptr, bytes};
}

inline double group_count(const Call& call, int64_t a, int64_t group) {
  if (call.mask.data == nullptr) return static_cast<double>(call.view.R * call.partition.length);
  return call.counts[a * counts_width(call) + (call.mask.by_g ? group : 0)];
}

}  // namespace JAXNORM_ISA
}  // namespace jaxnorm

#endif  // JAXNORM_MASK_H_
