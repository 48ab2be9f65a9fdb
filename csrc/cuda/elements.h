// One vector of a sigmoid's elements: how it is read, evaluated as negatives, patched where it has positives, and written.
//   traffic        16 bytes of logits, 16 of gradient; a positive is read again
//   mapping        one vector for a thread; its elements lie side by side, or `spread` apart
//   participation  none: no thread waits for another
// Must not know: which loss Term is, where the vectors of a block lie, torch.
#pragma once

#include "cuda/arguments.h"
#include "cuda/labels.h"
#include "cuda/memory.h"
#include "cuda/reduce.h"
#include "cuda/term.h"

namespace focal::cuda {

constexpr unsigned kElementThreads = 256;
// On a multiprocessor: at most 64 and 80 registers, and bytes enough in flight.
template <class Storage>
constexpr int kElementBlocks = sizeof(Storage) == 2 ? 3 : 4;

template <class Storage>
constexpr int kVectorOf = 16 / static_cast<int>(sizeof(Storage));

template <class Real>
struct Elements : Arguments<Real> {
  Real positive_weight, negative_weight;  // without weights of classes
  int64_t ordinary;                       // the label that almost all have: a negative for every class
  DenseRule dense_rule;
};

// A task's numbers in the computing type. Host.
template <class Real>
void set_numbers(const Task& task, Elements<Real>& a) {
  set_arguments(task, a);
  a.positive_weight = static_cast<Real>(task.positive_weight);
  a.negative_weight = static_cast<Real>(task.negative_weight);
  // Where the label of negatives is also the one to be ignored, none is ordinary.
  a.ordinary = task.index.background_index == task.index.ignore_index ? kAllValid : task.index.background_index;
  a.dense_rule = task.dense_rule;
}

// One vector of elements: element 0, the distance of its neighbours, and how many of them exist.
template <class Storage>
struct Place {
  const Storage* logits;
  Storage* gradient;
  int32_t first_class, class_step;  // element i is of class (first_class + i class_step) % classes
  int spread, count;
};

// Value and d value / dx of a logit in units whose target may be soft.
template <class Term, class Real>
FOCAL_DEVICE ValueDeriv<Real> any_target(Real gamma, Real logit, Real target) {
  if (target != Real(0) && target != Real(1)) return Term::soft(gamma)(logit, target);
  const Real sign = target == Real(1) ? Real(1) : Real(-1);
  const ValueDeriv<Real> result = Term::hard(gamma)(sign * logit);
  return {result.value, sign * result.deriv};
}

template <class Term, Mode mode, class Storage>
class VectorOfElements {
  using Math = typename Term::Math;
  using Real = typename Math::Real;

 public:
  static constexpr int kCount = kVectorOf<Storage>;
  using Raw = Vector<Storage, kCount>;

  FOCAL_DEVICE VectorOfElements(const Elements<Real>& a, Real scale, Findings<Real>& found)
      : a_(a), loss_(Term::hard(a.gamma())), scale_(scale), found_(found) {}

  static FOCAL_DEVICE Raw read(const Place<Storage>& place) {
    if (place.spread == 1 && place.count == kCount) return load_vector<Cache::kOnce, kCount>(place.logits);
    Raw raw{};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < place.count) raw.put(i, load(place.logits + i * place.spread));
    }
    return raw;
  }

  // A vector that is all there and all negatives. place(): where; asked for when it is needed.
  template <class PlaceOf>
  FOCAL_DEVICE void evaluate(const Raw& raw, const PlaceOf& place) {
    Real slope[kCount];
    found_.sum += a_.negative_weight * negatives(raw, place, 0, slope);
    write(place(), slope);
  }

  // The same with a bit for each element that is a positive, and for each that is no negative. A path of its own, so that
  // the one above has no branch but the guard's.
  FOCAL_DEVICE void evaluate(const Raw& raw, const Place<Storage>& place, unsigned positives, unsigned out) {
    Real slope[kCount];
    found_.sum += a_.negative_weight * negatives(raw, [&] { return place; }, out, slope);
    while (positives) {
      const int own = __ffs(static_cast<int>(positives)) - 1;
      positives &= positives - 1;
      // Read again: an index into registers that is known at run time alone would put them into memory.
      const ValueDeriv<Real> result = loss_(Math::to_units(to_real<Real>(load(place.logits + own * place.spread))));
      found_.sum += a_.positive_weight * result.value;
      const Real patch = a_.positive_weight * scale_ * result.deriv;
#pragma unroll
      for (int i = 0; i < kCount; ++i) slope[i] = i == own ? patch : slope[i];
    }
    write(place, slope);
  }

  // Any vector: where elements are missing, or differ in their weights, or have a loss or an upstream each; `each` is
  // the offset of element 0 among these.
  FOCAL_DEVICE void evaluate_each(const Place<Storage>& place, int64_t each, unsigned positives, unsigned ignored) {
    Real x[kCount], slope[kCount];
    widen(read(place), x);
    int32_t c = place.first_class;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      slope[i] = 0;
      if (i >= place.count) continue;
      const bool is_positive = positives >> i & 1, is_ignored = ignored >> i & 1;
      Real weight = is_positive ? a_.positive_weight : a_.negative_weight;
      if (a_.positive_weights) weight = load((is_positive ? a_.positive_weights : a_.negative_weights) + c);
      const Real sign = is_positive ? Real(1) : Real(-1);
      const ValueDeriv<Real> result = loss_(sign * Math::to_units(x[i]));
      const Real value = is_ignored ? Real(0) : weight * result.value;
      found_.sum += value;
      const int64_t at = each + static_cast<int64_t>(i) * place.spread;
      if (a_.loss) store(a_.loss + at, value * Math::kUnit);
      if (mode == Mode::kGradient) {
        slope[i] = is_ignored ? Real(0) : sign * weight * scale_ * a_.upstream(at) * result.deriv;
      }
      c += place.class_step;
      c = c == a_.classes ? 0 : c;
    }
    write(place, slope);
  }

  // Dense targets, hard or soft.
  FOCAL_DEVICE void evaluate(const Raw& raw, const Place<Storage>& place, int64_t each, const Real (&target)[kCount]) {
    Real x[kCount], value[kCount], slope[kCount];
    widen(raw, x);
    bool special = false;
#pragma unroll
    for (int i = 0; i < kCount; ++i) special |= target[i] != Real(0) && target[i] != Real(1);
    Real sum = 0;
    if (!special) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool is_positive = target[i] != Real(0);
        const Real sign = is_positive ? Real(1) : Real(-1);
        const Real weight = is_positive ? a_.positive_weight : a_.negative_weight;
        const ValueDeriv<Real> result = loss_.unguarded(sign * Math::to_units(x[i]));
        sum += result.value;
        value[i] = weight * result.value;
        slope[i] = sign * weight * scale_ * result.deriv;
      }
    }
    if (special || !(sum < Term::Hard::kUnguarded)) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) anything(place, each + i, i, x[i], target[i], value[i], slope[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) found_.sum += i < place.count ? value[i] : Real(0);
    if (a_.loss || a_.upstream_each) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i >= place.count) continue;
        if (a_.loss) store(a_.loss + each + i, value[i] * Math::kUnit);
        if (mode == Mode::kGradient && a_.upstream_each && slope[i] != Real(0)) slope[i] *= a_.upstream(each + i);
      }
    }
    write(place, slope);
  }

 private:
  // The sum of the values in Term's units, and the gradients, of elements that are negatives or `out`.
  template <class PlaceOf>
  FOCAL_DEVICE Real negatives(const Raw& raw, const PlaceOf& place, unsigned out, Real (&slope)[kCount]) const {
    Real sum = negatives(raw, out, [&](Real margin) { return loss_.unguarded(margin); }, slope);
    // Read again, so that the logits need not be kept beside their gradient.
    if (!(sum < Term::Hard::kUnguarded))
      sum = negatives(read(place()), out, [&](Real margin) { return loss_(margin); }, slope);
    return sum;
  }

  template <class Evaluate>
  FOCAL_DEVICE Real negatives(const Raw& raw, unsigned out, const Evaluate& evaluate, Real (&slope)[kCount]) const {
    const Real factor = -a_.negative_weight * scale_;
    Real x[kCount], sum = 0;
    widen(raw, x);
    if (out) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = out >> i & 1 ? -kNoMargin<Real> : x[i];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const ValueDeriv<Real> result = evaluate(-Math::to_units(x[i]));
      slope[i] = factor * result.deriv;
      sum += result.value;
    }
    return sum;
  }

  FOCAL_DEVICE void anything(const Place<Storage>& place, int64_t at, int i, Real x, Real target, Real& value,
                             Real& slope) const {
    if (i >= place.count) return;
    if (!a_.dense_rule.counted(target) || !a_.dense_rule.valid(target)) {
      value = slope = 0;
      ++found_.ignored;
      if (a_.dense_rule.counted(target)) found_.invalid = at;
      return;
    }
    const Real weight = target * a_.positive_weight + (Real(1) - target) * a_.negative_weight;
    const ValueDeriv<Real> result = any_target<Term>(a_.gamma(), Math::to_units(x), target);
    value = weight * result.value;
    slope = weight * scale_ * result.deriv;
  }

  FOCAL_DEVICE void write(const Place<Storage>& place, const Real (&slope)[kCount]) const {
    if (mode != Mode::kGradient) return;
    const Raw raw = narrow<Storage>(slope);
    if (place.spread == 1 && place.count == kCount) {
      store_vector<Cache::kOnce>(place.gradient, raw);
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < place.count) store(place.gradient + i * place.spread, raw.get(i));
    }
  }

  const Elements<Real>& a_;
  const typename Term::Hard loss_;
  const Real scale_;
  Findings<Real>& found_;
};

// A label's part in a vector whose element `begin` is the label's class `first`, up to element `end`.
template <class Real>
FOCAL_DEVICE void mark(const Elements<Real>& a, int64_t at, int64_t label, int begin, int end, int first,
                       unsigned& positives, unsigned& ignored, Findings<Real>& found) {
  const int32_t code = code_of(a.index, label);
  if (code == kBackground) return;
  if (code < 0) {
    ignored |= (1u << end) - (1u << begin);
    found.ignored += end - begin;
    if (code == kInvalid) found.invalid = at;
    return;
  }
  const int own = begin + code - first;
  if (own >= begin && own < end) positives |= 1u << own;
}

}  // namespace focal::cuda
