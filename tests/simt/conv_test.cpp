// The kernels of convolutions on the CPU (simt.h) against their definition in double precision.
#include "cuda/conv/conv.cuh"

#include <array>

#include "checking.h"

namespace sparseprune::cuda {
namespace {

struct Case {
  int groups, channels, blocks;  // of a group: input channels, and block rows
  int height, width;
  std::array<int, 2> kernel, stride;
  std::array<int, 4> pad;  // top, bottom, left, right
  std::array<int, 2> dilation;
  int samples;
  double density;
  bool special;
  int shift = 0;  // of the images, in numbers: vectors are not aligned
};

// Random numbers that begin `shift` numbers after an aligned address.
template <class T>
class Shifted {
 public:
  Shifted(int64_t n, int shift) : shift_(shift), all_(Buffer<T>::random(n + shift)) {}
  T* data() const { return all_.data() + shift_; }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return all_.size() - shift_; }

 private:
  int shift_;
  Buffer<T> all_;
};

// A pattern by block rows, and by (group, phase of the input, channel) as the transposed kernel wants it. Which
// phase a tap reaches is found by looking for an input position that it reads for some output position. Phases are
// those that are reached, in the order of the first positions of the kernel that do.
struct Pattern {
  std::vector<int32_t> start{0}, index, order;
  std::vector<int32_t> start_t{0}, index_t, source_t, order_t;
  std::array<std::vector<int>, 2> phases;

  Pattern(const Case& c) {
    const int taps = c.kernel[0] * c.kernel[1], rows = c.groups * c.blocks;
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < c.channels * taps; ++j)
        if (rows > 2 && r < 2 ? r == 1 && j == taps / 2 : uniform() < 2 * c.density - 1) index.push_back(j);
      start.push_back(int32_t(index.size()));
    }
    for (int r = rows; r-- > 0;) order.push_back(r);
    for (int axis = 0; axis < 2; ++axis)
      for (int k = 0; k < c.kernel[axis]; ++k)
        if (!reached(axis, phase_along(c, axis, k))) phases[axis].push_back(phase_along(c, axis, k));
    for (int group = 0; group < c.groups; ++group)
      for (const int down : phases[0])
        for (const int across : phases[1])
          for (int channel = 0; channel < c.channels; ++channel) {
            for (int block = 0; block < c.blocks; ++block) {
              const int row = group * c.blocks + block;
              for (int32_t j = start[row]; j < start[row + 1]; ++j) {
                const int tap = index[j] % taps;
                if (index[j] / taps == channel && phase_along(c, 0, tap / c.kernel[1]) == down &&
                    phase_along(c, 1, tap % c.kernel[1]) == across) {
                  index_t.push_back(block * taps + tap);
                  source_t.push_back(j);
                }
              }
            }
            start_t.push_back(int32_t(index_t.size()));
          }
    for (int r = int(start_t.size()) - 1; r-- > 0;) order_t.push_back(r);
  }
  static int phase_along(const Case& c, int axis, int k) {
    int at = k * c.dilation[axis] - c.pad[2 * axis];
    while (at < 0) at += c.stride[axis];
    return at % c.stride[axis];
  }
  bool reached(int axis, int phase) const {
    return std::find(phases[axis].begin(), phases[axis].end(), phase) != phases[axis].end();
  }
  int64_t nonzeros() const { return int64_t(index.size()); }
};

// plain: with a bias, rows in their own order, parts as launched; else without, in an order, in two parts
template <class T, int V>
void conv(const char* type, const Case& c, bool plain) {
  char text[200];
  snprintf(text, sizeof text,
           "conv %s V=%d, %d groups of %d channels and %d block rows, %dx%d, kernel %dx%d, %s%s%d samples", type,
           V, c.groups, c.channels, c.blocks, c.height, c.width, c.kernel[0], c.kernel[1],
           c.special ? "inf and nan, " : "", plain ? "" : "ordered, ", c.samples);
  current = text;
  const auto size_of = [&](int axis, int input) {
    return (input + c.pad[2 * axis] + c.pad[2 * axis + 1] - c.dilation[axis] * (c.kernel[axis] - 1) - 1) /
               c.stride[axis] +
           1;
  };
  const int out_height = size_of(0, c.height), out_width = size_of(1, c.width);
  const int taps = c.kernel[0] * c.kernel[1], rows = c.groups * c.blocks, all_channels = c.groups * c.channels;
  const Pattern p(c);
  const ConvShape of{{c.height, c.width},
                     {out_height, out_width},
                     c.kernel[0],
                     c.kernel[1],
                     c.stride[0],
                     c.stride[1],
                     c.pad[0],
                     c.pad[2],
                     c.dilation[0],
                     c.dilation[1],
                     c.groups,
                     c.channels,
                     c.blocks,
                     c.samples,
                     int32_t(p.phases[0].size()),
                     int32_t(p.phases[1].size())};
  const auto start = exactly(p.start), index = exactly(p.index), order = exactly(p.order);
  const auto start_t = exactly(p.start_t), index_t = exactly(p.index_t), source_t = exactly(p.source_t),
             order_t = exactly(p.order_t);
  const int64_t n = c.samples, in_plane = int64_t(c.height) * c.width * n,
                out_plane = int64_t(out_height) * out_width * n;
  const auto value = Buffer<T>::random(p.nonzeros() * V), bias = Buffer<T>::random(rows * V);
  const Shifted<T> x(all_channels * in_plane, c.shift), g(rows * V * out_plane, c.shift);
  if (c.special)
    for (const Shifted<T>* images : {&x, &g}) {
      (*images)[0] = (*images)[images->size() / 2] = T(std::numeric_limits<float>::infinity());
      (*images)[images->size() - 1] = T(std::numeric_limits<float>::quiet_NaN());
    }
  const Rows by_rows{start.data(), index.data(), plain ? nullptr : order.data(), rows};
  const Rows by_channels{start_t.data(), index_t.data(), plain ? nullptr : order_t.data(),
                         int32_t(p.start_t.size()) - 1};

  // visit(nonzero, v, place of the output, place of the input) for every product
  const auto for_products = [&](auto visit) {
    for (int r = 0; r < rows; ++r)
      for (int32_t j = p.start[r]; j < p.start[r + 1]; ++j) {
        const int channel = r / c.blocks * c.channels + p.index[j] / taps, tap = p.index[j] % taps;
        for (int a = 0; a < out_height; ++a)
          for (int b = 0; b < out_width; ++b) {
            const int h = a * c.stride[0] - c.pad[0] + tap / c.kernel[1] * c.dilation[0],
                      w = b * c.stride[1] - c.pad[2] + tap % c.kernel[1] * c.dilation[1];
            if (h < 0 || h >= c.height || w < 0 || w >= c.width) continue;
            for (int v = 0; v < V; ++v)
              for (int s = 0; s < n; ++s)
                visit(int64_t(j) * V + v, (int64_t(r) * V + v) * out_plane + (int64_t(a) * out_width + b) * n + s,
                      channel * in_plane + (int64_t(h) * c.width + w) * n + s);
          }
      }
  };
  struct Sums {
    std::vector<double> sum, scale;
    std::vector<int64_t> terms;
    explicit Sums(int64_t size) : sum(size_t(size)), scale(size_t(size)), terms(size_t(size)) {}
    void add(int64_t at, double term) {
      sum[size_t(at)] += term;
      scale[size_t(at)] += std::abs(term);
      ++terms[size_t(at)];
    }
    void expect(const Shifted<T>& got) const {
      for (int64_t i = 0; i < got.size(); ++i)
        expect_sum<T>(float(got[i]), sum[size_t(i)], scale[size_t(i)], terms[size_t(i)], i);
    }
  };
  Sums of_y(g.size()), of_x(x.size()), of_value(value.size());
  for (int64_t i = 0; i < g.size(); ++i)
    if (plain) of_y.add(i, double(float(bias[i / out_plane])));
  for_products([&](int64_t j, int64_t out, int64_t in) {
    of_y.add(out, double(float(value[j])) * float(x[in]));
    of_x.add(in, double(float(value[j])) * float(g[out]));
    of_value.add(j, double(float(g[out])) * float(x[in]));
  });

  const Buffer<Tap> room(conv_taps(of, false)), room_t(conv_taps(of, true));
  const Shifted<T> y(g.size(), c.shift), d_x(x.size(), c.shift), d_value(value.size(), 0);
  launch_conv<T, V>(by_rows, value.data(), of, x.data(), plain ? bias.data() : nullptr, room.data(), y.data(),
                    nullptr);
  of_y.expect(y);
  // Where no phase is reached nothing is written.
  for (int64_t i = 0; i < d_x.size(); ++i) {
    const int64_t pixel = i / n % (int64_t(c.height) * c.width);
    if (!p.reached(0, int(pixel / c.width % c.stride[0])) || !p.reached(1, int(pixel % c.width % c.stride[1])))
      d_x[i] = T(0);
  }
  launch_conv_t<T, V>(by_channels, source_t.data(), value.data(), of, g.data(), room_t.data(), d_x.data(),
                      nullptr);
  of_x.expect(d_x);
  const int64_t pixels = of.pixels_out();
  const Parts parts = plain ? parts_of_conv(of, rows) : Parts{2, std::max<int64_t>(divided_up(pixels, 2), 1)};
  const Buffer<float> workspace(parts.count * value.size());
  launch_conv_sddmm<T, V>(by_rows, p.nonzeros(), of, g.data(), x.data(), room.data(), parts, workspace.data(),
                          d_value.data(), nullptr);
  of_value.expect(d_value);
}

const Case few[] = {
    {1, 3, 4, 4, 3, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 0.7, false},
    {2, 2, 2, 3, 5, {2, 3}, {2, 1}, {0, 1, 2, 0}, {1, 1}, 3, 0.8, false},
    // more nonzeros in a row, of both plans, than are staged at a time
    {1, 4, 6, 2, 2, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 4, 1.1, false},
};
const Case most[] = {
    {1, 3, 4, 5, 7, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 0.7, false},
    {1, 3, 4, 6, 6, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}, 16, 0.7, true},
    {1, 2, 3, 6, 6, {1, 1}, {2, 2}, {0, 0, 0, 0}, {1, 1}, 3, 1.1, false},
    {1, 3, 3, 5, 7, {2, 3}, {2, 1}, {0, 2, 1, 0}, {1, 2}, 20, 0.7, false},
    {2, 3, 2, 5, 4, {3, 3}, {1, 2}, {1, 1, 1, 1}, {1, 1}, 4, 0.8, true},
    {3, 1, 1, 5, 4, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 1.1, false},
    {1, 2, 3, 1, 9, {1, 5}, {1, 3}, {0, 0, 2, 2}, {1, 1}, 1, 0.8, false},
    {1, 2, 4, 4, 5, {3, 3}, {3, 3}, {2, 2, 2, 2}, {2, 2}, 16, 0.8, false},
    // strides that leave phases out: longer than the kernel, or no prime to the dilation
    {2, 2, 3, 13, 9, {2, 3}, {7, 5}, {3, 1, 0, 2}, {1, 1}, 8, 0.8, true},
    {1, 2, 3, 11, 12, {3, 2}, {4, 6}, {1, 2, 5, 0}, {2, 4}, 3, 0.8, false},
    {1, 2, 3, 1, 1, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 0.8, false},
    {1, 2, 2, 4, 4, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 0.0, false},
    {1, 2, 2, 4, 4, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 0, 0.8, false},
    // more rows than a block of threads takes, and more nonzeros than are staged at a time
    {1, 4, 10, 2, 3, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 1.1, false},
    {1, 4, 6, 3, 2, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 3, 1.1, false},
    {2, 2, 3, 7, 5, {3, 2}, {2, 3}, {1, 0, 0, 2}, {1, 2}, 16, 0.8, true},
    {1, 2, 3, 4, 5, {1, 1}, {2, 1}, {1, 0, 0, 1}, {1, 1}, 8, 0.8, true},
    {1, 2, 3, 3, 4, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, 8, 0.8, false, 1},
};

template <class T, int V>
void conv_cases(const char* type) {
  for (const bool plain : {true, false})
    if (brief)
      for (const Case& c : few) conv<T, V>(type, c, plain);
    else
      for (const Case& c : most) conv<T, V>(type, c, plain);
}

template <class T>
void conv_blocks_of(const char* type) {
  conv_cases<T, 1>(type);
  if (!brief) conv_cases<T, 2>(type);
  conv_cases<T, 4>(type);
  if (!brief) conv_cases<T, 8>(type);
  if (!brief) conv_cases<T, 16>(type);
}

// What must be refused, or not, before anything is launched. Only the reach of a kernel is as long as it may be.
void sizes() {
  const ConvShape fits{{1, 1000}, {1, 1000}, 1, 3, 1, 1, 0, 1, 1, 1, 1, 2, 2, 1, 1, 1};
  const auto expect = [&](const char* what, bool fits_in, ConvShape of) {
    current = what;
    bool refused = false;
    try {
      fits_in ? check_sizes(of, 1) : fill_taps<false>(of, 1, nullptr, nullptr);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    ++checks;
    if (refused == fits_in) fail(refused ? "was refused" : "was not refused");
  };
  expect("sizes of a common convolution", true, fits);
  ConvShape of = fits;
  of.dilation_w = (INT16_MAX - of.left - of.stride_w) / of.kernel_w;
  expect("the longest reach", true, of);
  ++of.dilation_w;
  expect("a longer reach", false, of);
  of = fits;
  of.dilation_h = INT16_MAX;
  expect("a longer reach in height", false, of);
  of = fits;
  of.samples = INT32_MAX / 1000;
  expect("as many samples as can be counted", true, of);
  ++of.samples;
  expect("too many samples", false, of);
  of = fits;
  of.channels = INT32_MAX / 1000 - 10;
  expect("nearly as many input channels as can be counted", true, of);
  of.channels += 10;
  expect("too many input channels", false, of);
  of = fits;
  of.blocks = INT32_MAX / 1000;
  expect("too many output channels", false, of);
}

void run() {
  sizes();
  conv_blocks_of<float>("float32");
  if (brief) return;
  conv_blocks_of<Half>("float16");
  conv_blocks_of<BFloat16>("bfloat16");
}

}  // namespace
}  // namespace sparseprune::cuda

int main(int argc, char** argv) { return sparseprune::cuda::main_of_test(argc, argv, sparseprune::cuda::run); }
