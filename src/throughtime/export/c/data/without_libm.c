/* 1 / sqrt(x) from its exponent, made better three times, then sqrt(x) */
static inline float @sqrt(float x) {
    double y = (double)@number(0x5f375a86u - (@bits(x) >> 1));
    for (int i = 0; i < 4; i++) { y = y * (1.5 - 0.5 * (double)x * y * y); }
    const float root = (float)((double)x * y);
    const float below = x < 1.17549435e-38f ? (x < 0.0f ? @number(0x7fc00000u) : 0.0f) : root;
    return x < @number(0x7f800000u) ? below : x;
}

/* x in quarter turns, |x| up to a million: sin and cos of the rest, in their places */
static inline float @wave(float x, int32_t on) {
    const double a = x < 0.0f ? -(double)x : (double)x;
    const int32_t n = (int32_t)(a * 0.63661977236758134 + 0.5);
    const double r = (a - n * 1.57079632673412561417e+00) - n * 6.07710050650619224932e-11;
    const double z = r * r;
    const double s = r + r * z *
        (-0.166666641831398 + z * (0.008332714438438416 - z * 0.0001958328066393733));
    const double c = 1.0 - 0.5 * z + z * z *
        (0.0416666641831398 + z * (-0.00138882698956877 + z * 2.454345485602971e-05));
    const int32_t turn = n + on;
    const double y = (turn & 1) ? c : s;
    return (float)((turn & 2) ? -y : y);
}

static inline float @sin(float x) { return x < 0.0f ? -@wave(x, 0) : @wave(x, 0); }

static inline float @cos(float x) { return @wave(x, 1); }
