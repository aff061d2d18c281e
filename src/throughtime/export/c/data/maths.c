/* the bits of a number */
static inline uint32_t @bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* the number of bits */
static inline float @number(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* x where c is 1, y where it is 0; not written as a branch, so that loops become vectors */
static inline float @pick(int c, float x, float y) {
    const uint32_t mask = 0u - (uint32_t)c;
    return @number((@bits(x) & mask) | (@bits(y) & ~mask));
}

static inline float @copysign(float x, float sign) {
    return @number((@bits(x) & 0x7fffffffu) | (@bits(sign) & 0x80000000u));
}

static inline float @abs(float x) { return @number(@bits(x) & 0x7fffffffu); }

/* the nearest whole number, for |x| below 2^21: the lowest bits of a sum with 1.5 * 2^23 */
static inline int32_t @whole(float x) { return (int32_t)(@bits(x + 12582912.0f) - 0x4b400000u); }

/* 2^n for n from -126 to 127 */
static inline float @power(int32_t n) { return @number((uint32_t)(n + 127) << 23); }

/* exp(r) - 1 for r = x - n ln 2 */
static inline float @grown(float x, int32_t n, float less) {
    const float whole = (float)n;
    const float r = ((x - whole * 0.693359375f) - whole * -2.12194440e-4f) - less;
    return r + r * r * POLY(EXP, r);
}

static inline float @exp(float x) {
    float y = @pick(x < -103.0f, -103.0f, x);
    y = @pick(y > 89.0f, 89.0f, y);
    const int32_t n = @whole(y * 1.44269504f);
    const int32_t half = n / 2;
    return (@grown(y, n, 0.0f) + 1.0f) * @power(half) * @power(n - half);
}

/* exp(-a - less) for a >= 0 */
static inline float @fall(float a, float less) {
    const float y = -@pick(a > 87.3365402f, 87.3365402f, a);
    const int32_t n = @whole(y * 1.44269504f);
    const float s = @power(n);
    return s + s * @grown(y, n, less);
}

/* 4096 times that, where a may go on longer */
static inline float @fall_4096(float a, float less) {
    const float y = -@pick(a > 95.5f, 95.5f, a);
    const int32_t n = @whole(y * 1.44269504f);
    const float s = @power(n + 12);
    return s + s * @grown(y, n, less);
}

static inline float @expm1(float x) {
    float y = @pick(x < -18.1f, -18.1f, x);
    y = @pick(y > 88.8f, 88.8f, y);
    const int32_t n = @whole(y * 1.44269504f);
    const float s = @power(n - 1);
    const float z = (s - 0.5f) + s * @grown(y, n, 0.0f);
    return z + z;
}

/* 1 / (1 + exp(-x)) */
static inline float @sigmoid(float x) {
    const float e = @fall(@abs(x), 0.0f);
    return @pick(x < 0.0f, e, 1.0f) / (1.0f + e);
}

/* 1 - exp(-a) for a >= 0, right near 0 */
static inline float @below_one(float a) {
    const float y = -@pick(a > 18.0f, 18.0f, a);
    const int32_t n = @whole(y * 1.44269504f);
    const float s = @power(n);
    return (1.0f - s) - s * @grown(y, n, 0.0f);
}

static inline float @tanh(float x) {
    const float a = @abs(x);
    const float m = @below_one(a + a);
    return @copysign(m / (2.0f - m), x);
}

/* x / (1 + exp(-x)) */
static inline float @silu(float x) {
    const float e = @fall_4096(@abs(x), 0.0f);
    const float below = x * e * 0.000244140625f;
    return @pick(x < 0.0f, below, x) / (1.0f + e * 0.000244140625f);
}

/* log(1 + e) for e from 0 to 1 */
static inline float @log1p_small(float e) {
    const float s = (e + e) / (2.0f + e);
    const float z = s * s;
    return s + s * z * POLY(LOG1P, z);
}

static inline float @softplus(float x, float beta, float threshold) {
    const float z = x * beta;
    const float y = @log1p_small(@fall(@abs(z), 0.0f)) / beta + @pick(x < 0.0f, 0.0f, x);
    return @pick(z > threshold, x, y);
}

static inline float @logsigmoid(float x) {
    return @pick(x > 0.0f, 0.0f, x) - @log1p_small(@fall(@abs(x), 0.0f));
}

static inline float @elu(float x, float below, float above, float inner) {
    return @pick(x <= 0.0f, @expm1(x * inner) * below, x * above);
}

/* k ln 2 + log(1 + f) */
static inline float @log_of(float k, float f) {
    const float s = f / (2.0f + f);
    const float z = s * s;
    const float half = f * 0.5f * f;
    const float low = k * -2.12194440e-4f + s * (half + z * POLY(LOG, z));
    return k * 0.693359375f + (f - (half - low));
}

static inline float @log_ends(float y, float x) {
    const float zero = @pick(x == 0.0f, @number(0xff800000u), y);
    const float below = @pick(x < 0.0f, @number(0x7fc00000u), zero);
    return @pick(x < @number(0x7f800000u), below, x);
}

static inline float @log(float x) {
    const int tiny = x < 1.17549435e-38f;
    const uint32_t u = @bits(@pick(tiny, x * 33554432.0f, x));
    const uint32_t field = (u + (0x3f800000u - 0x3f3504f3u)) >> 23;
    const float f = @number(u - (field << 23) + 0x3f800000u) - 1.0f;
    const float k = (float)(int32_t)field - @pick(tiny, 152.0f, 127.0f);
    return @log_ends(@log_of(k, f), x);
}

static inline float @log1p(float x) {
    const float u = 1.0f + x;
    const uint32_t field = (@bits(u) + (0x3f800000u - 0x3f3504f3u)) >> 23;
    const float k = (float)(int32_t)field - 127.0f;
    const float power = @pick(field > 252u, 0.0f, @number((254u - field) << 23));
    const float f = @number(@bits(x) - (field << 23) + 0x3f800000u) + (power - 1.0f);
    const float y = @copysign(@log_ends(@log_of(k, f), u), x);
    return @pick((x < 1.0e-8f) & (x > -1.0e-8f), x, y);
}

static inline float @atan(float x) {
    const float a = @abs(x);
    const int above = a > 1.0f;
    const float t = @pick(above, -1.0f, a) / @pick(above, a, 1.0f);
    const float z = t * t;
    const float y = t + t * z * POLY(ATAN, z);
    const float turned = 1.57079637f + (y - 4.37113883e-8f);
    return @copysign(@pick(above, turned, y), x);
}

static inline float @erf(float x) {
    const float b = @abs(x);
    const float a = @pick(b > 4.0f, 4.0f, b);
    return @copysign(@below_one(a * POLY(ERF, a)), x);
}

/* x times the share of the normal distribution below x */
static inline float @gelu(float x) {
    const float b = @abs(x);
    const float a = @pick(b > 13.5f, 13.5f, b);
    const float square = a * a;
    const float high = @number(@bits(a) & 0xfffff000u);
    const float rest = a - high;
    const float less = ((high * high - square) + 2.0f * high * rest) + rest * rest;
    const float e = @fall_4096(square * 0.5f, less * 0.5f);
    const float d = a + 4.0f;
    const float t = (a - 2.0f) / d;
    const float p = e * POLY(NORMAL, t) / d;
    return x * @pick(x < 0.0f, p * 0.000244140625f, 1.0f - p * 0.000244140625f);
}

static inline float @sqrt(float x) { return sqrtf(x); }

static inline float @sin(float x) { return sinf(x); }

static inline float @cos(float x) { return cosf(x); }

static inline float @pow(float x, float e) { return powf(x, e); }

/* a weight of bfloat16 */
static inline float @wide(uint16_t half) { return @number((uint32_t)half << 16); }

/* what a line of int8 is multiplied by: eight steps to each doubling, from 2 to the -24 on */
static inline float @scale(uint8_t code) {
    return @number(((uint32_t)code << SCALE_SHIFT) + SCALE_STARTu);
}

/* the whole number in x, held between 0 and last */
static inline size_t @line(float x, size_t last) {
    const float most = (float)last;
    const float y = x > 0.0f ? x : 0.0f;
    return (size_t)(y < most ? y : most);
}
