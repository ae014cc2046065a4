// The operands and results of a call, checked against the view.
#ifndef JAXNORM_OPERANDS_H_
#define JAXNORM_OPERANDS_H_

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>
#include <utility>

#include "call.h"
#include "xla/ffi/api/ffi.h"

namespace jaxnorm {

namespace ffi = xla::ffi;

// What a call lacks, as an error that XLA reports.
class Invalid : public std::exception {
 public:
  explicit Invalid(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

inline int64_t product(std::initializer_list<int64_t> extents) {
  int64_t all = 1;
  bool empty = false;
  for (const int64_t extent : extents) {
    if (extent < 0) throw Invalid("a negative extent of the view");
    empty = empty || extent == 0;
    if (extent != 0 && __builtin_mul_overflow(all, extent, &all)) {
      throw Invalid("the extents of the view overflow 64 bits");
    }
  }
  return empty ? 0 : all;
}

inline Dtype dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::F32:
      return Dtype::float32;
    case ffi::F64:
      return Dtype::float64;
    case ffi::BF16:
      return Dtype::bfloat16;
    case ffi::F16:
      return Dtype::float16;
    default:
      throw Invalid("x must be float32, bfloat16, float16 or float64");
  }
}

// Checks what it reads against the view, and gives pointers.
class Operands {
 public:
  Operands(const View& view, ffi::AnyBuffer x)
      : view_(view),
        type_(x.element_type()),
        dtype_(dtype_of(type_)),
        count_(product({view.A, view.R, view.G, view.S, view.T})),
        rows_(product({view.A, view.G})),
        parameters_(view.by_row ? view.R : product({view.G, view.S})) {}

  Dtype dtype() const { return dtype_; }
  bool empty() const { return count_ == 0; }
  int64_t rows() const { return rows_; }

  // x, g, y or dx.
  void* values(const char* name, const ffi::AnyBuffer& buffer) const {
    if (buffer.element_type() != type_) throw Invalid(std::string(name) + " is not of x's dtype");
    return sized(name, buffer, count_);
  }

  Rows statistics(const char* name, const ffi::AnyBuffer& buffer) const {
    return rows(name, buffer, view_.G);
  }

  Rows statistics_or_none(const char* name, const ffi::AnyBuffer& buffer) const {
    return buffer.element_count() == 0 ? Rows{nullptr, 0, 1} : rows(name, buffer, view_.G);
  }

  Rows parameters_or_none(const char* name, const ffi::AnyBuffer& buffer) const {
    return buffer.element_count() == 0 ? Rows{nullptr, 0, 1} : rows(name, buffer, parameters_);
  }

  Mask mask_or_none(const ffi::AnyBuffer& buffer, int64_t rows, bool by_g, bool by_t) const {
    if (buffer.element_count() == 0) return {nullptr, 1, 1, false, false};
    if (buffer.element_type() != ffi::PRED) throw Invalid("mask must be boolean");
    if (rows < 1 || view_.R % rows != 0) throw Invalid("mask_rows does not divide R");
    const int64_t width = product({rows, by_g ? view_.G : 1, by_t ? view_.T : 1});
    const auto count = static_cast<int64_t>(buffer.element_count());
    const int64_t given = count / width;
    if (given == 0 || count % width != 0 || view_.A % given != 0) {
      throw Invalid("mask has " + std::to_string(count) + " values, which are no rows of " +
                    std::to_string(width) + " for " + std::to_string(view_.A) + " slices");
    }
    return {static_cast<const uint8_t*>(buffer.untyped_data()), view_.A / given, rows, by_g, by_t};
  }

  // A result of [A, G].
  void* result(const char* name, const ffi::AnyBuffer& buffer) const {
    check_statistics_dtype(name, buffer);
    return sized(name, buffer, rows_);
  }

  void* result_or_none(const char* name, const ffi::AnyBuffer& buffer) const {
    return buffer.element_count() == 0 ? nullptr : result(name, buffer);
  }

  double scalar(const char* name, const ffi::AnyBuffer& buffer) const {
    check_statistics_dtype(name, buffer);
    const void* data = sized(name, buffer, 1);
    return dtype_ == Dtype::float64 ? *static_cast<const double*>(data)
                                    : static_cast<double>(*static_cast<const float*>(data));
  }

 private:
  void check_statistics_dtype(const char* name, const ffi::AnyBuffer& buffer) const {
    if (buffer.element_type() != (dtype_ == Dtype::float64 ? ffi::F64 : ffi::F32)) {
      throw Invalid(std::string(name) + " must be float32, or float64 where x is");
    }
  }

  static void* sized(const char* name, const ffi::AnyBuffer& buffer, int64_t count) {
    const auto given = static_cast<int64_t>(buffer.element_count());
    if (given != count) {
      throw Invalid(std::string(name) + " has " + std::to_string(given) +
                    " values where the view has " + std::to_string(count));
    }
    const auto address = reinterpret_cast<uintptr_t>(buffer.untyped_data());
    if (count > 0 && address % ffi::ByteWidth(buffer.element_type()) != 0) {
      throw Invalid(std::string(name) + " is not aligned to its dtype");
    }
    return buffer.untyped_data();
  }

  // Rows of `width` values, one for every a or for consecutive a.
  Rows rows(const char* name, const ffi::AnyBuffer& buffer, int64_t width) const {
    check_statistics_dtype(name, buffer);
    const auto count = static_cast<int64_t>(buffer.element_count());
    const int64_t given = width == 0 ? 0 : count / width;
    if (given == 0 || count % width != 0 || view_.A % given != 0) {
      throw Invalid(std::string(name) + " has " + std::to_string(count) +
                    " values, which are no rows of " + std::to_string(width) + " for " +
                    std::to_string(view_.A) + " slices");
    }
    return {sized(name, buffer, count), width, view_.A / given};
  }

  View view_;
  ffi::DataType type_;
  Dtype dtype_;
  int64_t count_, rows_, parameters_;
};

}  // namespace jaxnorm

#endif  // JAXNORM_OPERANDS_H_
