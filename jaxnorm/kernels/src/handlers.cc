// The handlers that XLA calls.
//
// Each takes the view of x as the attributes A, R, G, S, T and by_row; mask_rows is the
// extent of the mask along R, and mask_g and mask_t whether it varies along G and T. Of an operand
// or a result only the dtype and the number of values are looked at; what is optional has none
// where it is not given.
//
//   D          float32, bfloat16, float16 or float64: x, g, y, dx
//   F          float32, float64 where D is float64: statistics and parameters
//   rows       F[A, G], or F[1, G], the same for every a
//   parameters F[P, G, S], where P divides A: A / P consecutive a have the same; by row F[P, R],
//              where S = T = 1, and without a shift
//   mask       bool[P, mask_rows, G, T] without G or T where it does not vary along them; P divides
//              A, and mask_rows R: consecutive a, and consecutive r, have the same; along G only
//              where S = T = 1, without R and without a shift. mask.h says what it does
//
//   jaxnorm_measure         x, mask?; about_zero -> center, correction?, var, count?
//   jaxnorm_apply           x, center, correction?, gain, shift?, scale?, bias?, mask? -> y
//   jaxnorm_normalize       x, scale?, bias?, mask?, epsilon; about_zero
//                             -> y, center, correction?, var, count?
//   jaxnorm_sums            x, g, center, correction?, gain, shift?, scale?, mask?
//                             -> along?, total?, dscale?, dbias?
//   jaxnorm_backward        x, g, center, correction?, gain, rstd?, along_mean?, total_mean?,
//                           scale?, mask? -> dx
//   jaxnorm_backward_fused  x, g, center, correction?, var, scale?, mask?, epsilon; about_zero
//                             -> dx, dscale?, dbias?
//
//   mean   = center + correction, which is more precise than F
//   y      = ((x - mean) * gain + shift) * scale + bias, where gain = 1 / sqrt(var + epsilon)
//   along  = sum(scale * g * (x - mean)) and total = sum(scale * g) of each (a, g)
//   dscale = sum(g * ((x - mean) * gain + shift)) and dbias = sum(g) of each parameter
//   dx     = gain * (scale * g - total_mean - (x - mean) * rstd^2 * along_mean)

#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "job.h"
#include "kernels.h"
#include "operands.h"
#include "xla/ffi/api/ffi.h"

namespace jaxnorm {
namespace {

using Planner = Plan (*)(Call&);

struct InstructionSet {
  const char* name;
  Planner plan;
};

InstructionSet best_instruction_set() {
#ifdef JAXNORM_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return {"AVX-512", avx512::plan};
  if (avx2) return {"AVX2", avx2::plan};
#endif
  return {"baseline", baseline::plan};
}

const InstructionSet& instruction_set() {
  static const InstructionSet best = best_instruction_set();
  return best;
}

void fill_zero(const ffi::AnyBuffer& buffer) {
  std::memset(buffer.untyped_data(), 0, buffer.size_bytes());
}

ffi::Future failed(std::string message) {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetError(ffi::Error::InvalidArgument(std::move(message)));
  return future;
}

ffi::Future ready() {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetAvailable();
  return future;
}

using Attributes = ffi::Dictionary;

template <class Value>
Value attribute(const Attributes& attributes, const char* name) {
  const ffi::ErrorOr<Value> value = attributes.get<Value>(name);
  if (!value.has_value()) throw Invalid(std::string("the attribute ") + name + " is missing");
  return value.value();
}

View view_of(const Attributes& attributes) {
  const auto extent = [&](const char* name) { return attribute<int64_t>(attributes, name); };
  return {extent("A"), extent("R"), extent("G"),
          extent("S"), extent("T"), attribute<bool>(attributes, "by_row")};
}

// What the layouts that a view or a mask asks for cannot do.
void check(const Call& call) {
  const View& v = call.view;
  const bool crossed = v.by_row || call.mask.by_g;
  if (crossed && (v.S != 1 || v.T != 1 || call.shift.data != nullptr)) {
    throw Invalid("by row and with a mask along G there are neither S and T nor a shift");
  }
  if (crossed && (call.mask.rows > 1 || call.mask.by_t)) {
    throw Invalid("by row and with a mask along G no mask varies along R or T");
  }
  if (call.mask.by_g && !v.by_row && (call.scale.data != nullptr || call.bias.data != nullptr)) {
    throw Invalid("with a mask along G scale and bias are by row");
  }
}

// Reads a call with `describe`, and runs it. A view without values has results of 0.
template <class Describe>
ffi::Future run(Operation operation, const Attributes& attributes, const ffi::ThreadPool& pool,
                const ffi::AnyBuffer& x, const ffi::AnyBuffer& mask,
                std::initializer_list<ffi::Result<ffi::AnyBuffer>> results, Describe describe) try {
  const View view = view_of(attributes);
  const Operands operands(view, x);
  Call call = {};
  call.operation = operation;
  call.dtype = operands.dtype();
  call.view = view;
  call.share = view.A;
  call.x = operands.values("x", x);
  if (operands.empty()) {
    for (ffi::Result<ffi::AnyBuffer> result : results) fill_zero(*result);
    return ready();
  }
  call.mask = operands.mask_or_none(mask, attribute<int64_t>(attributes, "mask_rows"),
                                    attribute<bool>(attributes, "mask_g"),
                                    attribute<bool>(attributes, "mask_t"));
  describe(operands, call);
  check(call);
  const Plan plan = instruction_set().plan(call);
  return std::make_shared<Job>(call, plan)->run(pool);
} catch (const Invalid& invalid) {
  return failed(std::string("jaxnorm: ") + invalid.what());
} catch (const std::exception& error) {
  return failed(std::string("jaxnorm: ") + error.what());
}

using Buffer = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Future measure(ffi::ThreadPool pool, Attributes attributes, Buffer x, Buffer mask, Out center,
                    Out correction, Out var, Out count) {
  return run(Operation::measure, attributes, pool, x, mask, {center, correction, var, count},
             [&](const Operands& operands, Call& call) {
               call.about_zero = attribute<bool>(attributes, "about_zero");
               call.out_center = operands.result("center", *center);
               call.out_correction = operands.result_or_none("correction", *correction);
               call.out_var = operands.result("var", *var);
               call.out_count = operands.result_or_none("count", *count);
             });
}

ffi::Future apply(ffi::ThreadPool pool, Attributes attributes, Buffer x, Buffer center,
                  Buffer correction, Buffer gain, Buffer shift, Buffer scale, Buffer bias,
                  Buffer mask, Out y) {
  return run(Operation::apply, attributes, pool, x, mask, {y},
             [&](const Operands& operands, Call& call) {
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.gain = operands.statistics("gain", gain);
               call.shift = operands.statistics_or_none("shift", shift);
               call.scale = operands.parameters_or_none("scale", scale);
               call.bias = operands.parameters_or_none("bias", bias);
               call.y = operands.values("y", *y);
             });
}

ffi::Future normalize(ffi::ThreadPool pool, Attributes attributes, Buffer x, Buffer scale,
                      Buffer bias, Buffer mask, Buffer epsilon, Out y, Out center, Out correction,
                      Out var, Out count) {
  return run(Operation::normalize, attributes, pool, x, mask, {y, center, correction, var, count},
             [&](const Operands& operands, Call& call) {
               call.about_zero = attribute<bool>(attributes, "about_zero");
               call.scale = operands.parameters_or_none("scale", scale);
               call.bias = operands.parameters_or_none("bias", bias);
               call.epsilon = operands.scalar("epsilon", epsilon);
               call.y = operands.values("y", *y);
               call.out_center = operands.result("center", *center);
               call.out_correction = operands.result_or_none("correction", *correction);
               call.out_var = operands.result("var", *var);
               call.out_count = operands.result_or_none("count", *count);
             });
}

// The derivatives of scale and bias, with the same rows.
void describe_parameters(const Operands& operands, Call& call, const Buffer& dscale,
                         const Buffer& dbias) {
  const Rows scale = operands.parameters_or_none("dscale", dscale);
  const Rows bias = operands.parameters_or_none("dbias", dbias);
  if (scale.data && bias.data && scale.share != bias.share) {
    throw Invalid("dscale and dbias have different numbers of rows");
  }
  call.out_scale = const_cast<void*>(scale.data);
  call.out_bias = const_cast<void*>(bias.data);
  if (scale.data || bias.data) call.share = scale.data ? scale.share : bias.share;
}

ffi::Future sums(ffi::ThreadPool pool, Attributes attributes, Buffer x, Buffer g, Buffer center,
                 Buffer correction, Buffer gain, Buffer shift, Buffer scale, Buffer mask, Out along,
                 Out total, Out dscale, Out dbias) {
  return run(Operation::sums, attributes, pool, x, mask, {along, total, dscale, dbias},
             [&](const Operands& operands, Call& call) {
               call.g = operands.values("g", g);
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.gain = operands.statistics("gain", gain);
               call.shift = operands.statistics_or_none("shift", shift);
               call.scale = operands.parameters_or_none("scale", scale);
               call.out_along = operands.result_or_none("along", *along);
               call.out_total = operands.result_or_none("total", *total);
               describe_parameters(operands, call, *dscale, *dbias);
             });
}

ffi::Future backward(ffi::ThreadPool pool, Attributes attributes, Buffer x, Buffer g, Buffer center,
                     Buffer correction, Buffer gain, Buffer rstd, Buffer along_mean,
                     Buffer total_mean, Buffer scale, Buffer mask, Out dx) {
  return run(Operation::backward, attributes, pool, x, mask, {dx},
             [&](const Operands& operands, Call& call) {
               call.g = operands.values("g", g);
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.gain = operands.statistics("gain", gain);
               call.rstd = operands.statistics_or_none("rstd", rstd);
               call.along_mean = operands.statistics_or_none("along_mean", along_mean);
               call.total_mean = operands.statistics_or_none("total_mean", total_mean);
               call.scale = operands.parameters_or_none("scale", scale);
               call.y = operands.values("dx", *dx);
             });
}

ffi::Future backward_fused(ffi::ThreadPool pool, Attributes attributes, Buffer x, Buffer g,
                           Buffer center, Buffer correction, Buffer var, Buffer scale, Buffer mask,
                           Buffer epsilon, Out dx, Out dscale, Out dbias) {
  return run(Operation::backward_fused, attributes, pool, x, mask, {dx, dscale, dbias},
             [&](const Operands& operands, Call& call) {
               call.about_zero = attribute<bool>(attributes, "about_zero");
               call.g = operands.values("g", g);
               call.center = operands.statistics("center", center);
               call.correction = operands.statistics_or_none("correction", correction);
               call.var = operands.statistics("var", var);
               call.scale = operands.parameters_or_none("scale", scale);
               call.epsilon = operands.scalar("epsilon", epsilon);
               call.y = operands.values("dx", *dx);
               describe_parameters(operands, call, *dscale, *dbias);
             });
}

auto with_attributes() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attrs(); }

}  // namespace
}  // namespace jaxnorm

using jaxnorm::Buffer;

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_measure, jaxnorm::measure,
                              jaxnorm::with_attributes()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_apply, jaxnorm::apply,
                              jaxnorm::with_attributes()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_normalize, jaxnorm::normalize,
                              jaxnorm::with_attributes()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_sums, jaxnorm::sums,
                              jaxnorm::with_attributes()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_backward, jaxnorm::backward,
                              jaxnorm::with_attributes()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_backward_fused, jaxnorm::backward_fused,
                              jaxnorm::with_attributes()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>());

// The instruction set that the kernels use here.
extern "C" const char* jaxnorm_instruction_set() { return jaxnorm::instruction_set().name; }

#pragma GCC visibility pop
