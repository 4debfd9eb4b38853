// Constants of the functions in simd.h. In a file of their own, so that the compiler of a loop does not know them: where it
// does, an engine builds each from three instructions at every turn.
#include "simd.h"

#define FOUR(x) {x, x, x, x}
#define BYTES(x) x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x
const float EXP[10][4] = {
    FOUR(-87.33f), FOUR(88.0f), FOUR(1.44269504088896341f), FOUR(12582912.0f), FOUR(-0.693359375f),
    FOUR(2.12194440e-4f), FOUR(4.999923110e-01f), FOUR(1.666711420e-01f), FOUR(4.189015925e-02f),
    FOUR(8.312520571e-03f),
};
// -126, the least power of two that is not denormal, and 2^x on [-½, ½] times 2¹⁴ - 1: a polynomial, minimax for the
// relative error, exact at 0.
const float POWER_OF_TWO[7][4] = {
    FOUR(-126.0f), FOUR(21.7316184520f), FOUR(158.448455971f), FOUR(909.376711291f), FOUR(3935.56391109f),
    FOUR(11355.8269335f), FOUR(16383.0f),
};
const float LARGE[4] = FOUR(12582912.0f);
const uint8_t LOW_NIBBLE[16] = {BYTES(15)};
const uint8_t HIGH_NIBBLE[16] = {BYTES(240)};
const uint8_t SEVEN_BITS[16] = {BYTES(127)};
// -2√(2/π), and that times 0.044715
const float GELU_POWERS[2][4] = {FOUR(-1.5957691216057308f), FOUR(-0.07135481282553f)};
