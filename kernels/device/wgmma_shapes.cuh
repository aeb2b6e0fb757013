// Written by wgmma_shapes.py. One WgmmaShape<N> for each N, from WGMMA_SHAPE of wgmma.cuh; a thread holds N / 2 accumulators.
#pragma once

#define WGMMA_TEXT_8 "%0, %1, %2, %3"
#define WGMMA_OPERANDS_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
WGMMA_SHAPE(8, 4, 5, 6, 7, 8, 9, 10)
#define WGMMA_TEXT_16 WGMMA_TEXT_8 ", %4, %5, %6, %7"
#define WGMMA_OPERANDS_16 WGMMA_OPERANDS_8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
WGMMA_SHAPE(16, 8, 9, 10, 11, 12, 13, 14)
#define WGMMA_TEXT_24 WGMMA_TEXT_16 ", %8, %9, %10, %11"
#define WGMMA_OPERANDS_24 WGMMA_OPERANDS_16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
WGMMA_SHAPE(24, 12, 13, 14, 15, 16, 17, 18)
#define WGMMA_TEXT_32 WGMMA_TEXT_24 ", %12, %13, %14, %15"
#define WGMMA_OPERANDS_32 WGMMA_OPERANDS_24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
WGMMA_SHAPE(32, 16, 17, 18, 19, 20, 21, 22)
#define WGMMA_TEXT_40 WGMMA_TEXT_32 ", %16, %17, %18, %19"
#define WGMMA_OPERANDS_40 WGMMA_OPERANDS_32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
WGMMA_SHAPE(40, 20, 21, 22, 23, 24, 25, 26)
#define WGMMA_TEXT_48 WGMMA_TEXT_40 ", %20, %21, %22, %23"
#define WGMMA_OPERANDS_48 WGMMA_OPERANDS_40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
WGMMA_SHAPE(48, 24, 25, 26, 27, 28, 29, 30)
#define WGMMA_TEXT_56 WGMMA_TEXT_48 ", %24, %25, %26, %27"
#define WGMMA_OPERANDS_56 WGMMA_OPERANDS_48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
WGMMA_SHAPE(56, 28, 29, 30, 31, 32, 33, 34)
#define WGMMA_TEXT_64 WGMMA_TEXT_56 ", %28, %29, %30, %31"
#define WGMMA_OPERANDS_64 WGMMA_OPERANDS_56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
WGMMA_SHAPE(64, 32, 33, 34, 35, 36, 37, 38)
#define WGMMA_TEXT_72 WGMMA_TEXT_64 ", %32, %33, %34, %35"
#define WGMMA_OPERANDS_72 WGMMA_OPERANDS_64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
WGMMA_SHAPE(72, 36, 37, 38, 39, 40, 41, 42)
#define WGMMA_TEXT_80 WGMMA_TEXT_72 ", %36, %37, %38, %39"
#define WGMMA_OPERANDS_80 WGMMA_OPERANDS_72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
WGMMA_SHAPE(80, 40, 41, 42, 43, 44, 45, 46)
#define WGMMA_TEXT_88 WGMMA_TEXT_80 ", %40, %41, %42, %43"
#define WGMMA_OPERANDS_88 WGMMA_OPERANDS_80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
WGMMA_SHAPE(88, 44, 45, 46, 47, 48, 49, 50)
#define WGMMA_TEXT_96 WGMMA_TEXT_88 ", %44, %45, %46, %47"
#define WGMMA_OPERANDS_96 WGMMA_OPERANDS_88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
WGMMA_SHAPE(96, 48, 49, 50, 51, 52, 53, 54)
#define WGMMA_TEXT_104 WGMMA_TEXT_96 ", %48, %49, %50, %51"
#define WGMMA_OPERANDS_104 WGMMA_OPERANDS_96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
WGMMA_SHAPE(104, 52, 53, 54, 55, 56, 57, 58)
#define WGMMA_TEXT_112 WGMMA_TEXT_104 ", %52, %53, %54, %55"
#define WGMMA_OPERANDS_112 WGMMA_OPERANDS_104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
WGMMA_SHAPE(112, 56, 57, 58, 59, 60, 61, 62)
#define WGMMA_TEXT_120 WGMMA_TEXT_112 ", %56, %57, %58, %59"
#define WGMMA_OPERANDS_120 WGMMA_OPERANDS_112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
WGMMA_SHAPE(120, 60, 61, 62, 63, 64, 65, 66)
#define WGMMA_TEXT_128 WGMMA_TEXT_120 ", %60, %61, %62, %63"
#define WGMMA_OPERANDS_128 WGMMA_OPERANDS_120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
WGMMA_SHAPE(128, 64, 65, 66, 67, 68, 69, 70)
#define WGMMA_TEXT_136 WGMMA_TEXT_128 ", %64, %65, %66, %67"
#define WGMMA_OPERANDS_136 WGMMA_OPERANDS_128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
WGMMA_SHAPE(136, 68, 69, 70, 71, 72, 73, 74)
#define WGMMA_TEXT_144 WGMMA_TEXT_136 ", %68, %69, %70, %71"
#define WGMMA_OPERANDS_144 WGMMA_OPERANDS_136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
WGMMA_SHAPE(144, 72, 73, 74, 75, 76, 77, 78)
#define WGMMA_TEXT_152 WGMMA_TEXT_144 ", %72, %73, %74, %75"
#define WGMMA_OPERANDS_152 WGMMA_OPERANDS_144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
WGMMA_SHAPE(152, 76, 77, 78, 79, 80, 81, 82)
#define WGMMA_TEXT_160 WGMMA_TEXT_152 ", %76, %77, %78, %79"
#define WGMMA_OPERANDS_160 WGMMA_OPERANDS_152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
WGMMA_SHAPE(160, 80, 81, 82, 83, 84, 85, 86)
#define WGMMA_TEXT_168 WGMMA_TEXT_160 ", %80, %81, %82, %83"
#define WGMMA_OPERANDS_168 WGMMA_OPERANDS_160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
WGMMA_SHAPE(168, 84, 85, 86, 87, 88, 89, 90)
#define WGMMA_TEXT_176 WGMMA_TEXT_168 ", %84, %85, %86, %87"
#define WGMMA_OPERANDS_176 WGMMA_OPERANDS_168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
WGMMA_SHAPE(176, 88, 89, 90, 91, 92, 93, 94)
#define WGMMA_TEXT_184 WGMMA_TEXT_176 ", %88, %89, %90, %91"
#define WGMMA_OPERANDS_184 WGMMA_OPERANDS_176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
WGMMA_SHAPE(184, 92, 93, 94, 95, 96, 97, 98)
#define WGMMA_TEXT_192 WGMMA_TEXT_184 ", %92, %93, %94, %95"
#define WGMMA_OPERANDS_192 WGMMA_OPERANDS_184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
WGMMA_SHAPE(192, 96, 97, 98, 99, 100, 101, 102)
#define WGMMA_TEXT_200 WGMMA_TEXT_192 ", %96, %97, %98, %99"
#define WGMMA_OPERANDS_200 WGMMA_OPERANDS_192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
WGMMA_SHAPE(200, 100, 101, 102, 103, 104, 105, 106)
#define WGMMA_TEXT_208 WGMMA_TEXT_200 ", %100, %101, %102, %103"
#define WGMMA_OPERANDS_208 WGMMA_OPERANDS_200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
WGMMA_SHAPE(208, 104, 105, 106, 107, 108, 109, 110)
#define WGMMA_TEXT_216 WGMMA_TEXT_208 ", %104, %105, %106, %107"
#define WGMMA_OPERANDS_216 WGMMA_OPERANDS_208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
WGMMA_SHAPE(216, 108, 109, 110, 111, 112, 113, 114)
#define WGMMA_TEXT_224 WGMMA_TEXT_216 ", %108, %109, %110, %111"
#define WGMMA_OPERANDS_224 WGMMA_OPERANDS_216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
WGMMA_SHAPE(224, 112, 113, 114, 115, 116, 117, 118)
#define WGMMA_TEXT_232 WGMMA_TEXT_224 ", %112, %113, %114, %115"
#define WGMMA_OPERANDS_232 WGMMA_OPERANDS_224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
WGMMA_SHAPE(232, 116, 117, 118, 119, 120, 121, 122)
#define WGMMA_TEXT_240 WGMMA_TEXT_232 ", %116, %117, %118, %119"
#define WGMMA_OPERANDS_240 WGMMA_OPERANDS_232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
WGMMA_SHAPE(240, 120, 121, 122, 123, 124, 125, 126)
#define WGMMA_TEXT_248 WGMMA_TEXT_240 ", %120, %121, %122, %123"
#define WGMMA_OPERANDS_248 WGMMA_OPERANDS_240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
WGMMA_SHAPE(248, 124, 125, 126, 127, 128, 129, 130)
#define WGMMA_TEXT_256 WGMMA_TEXT_248 ", %124, %125, %126, %127"
#define WGMMA_OPERANDS_256 WGMMA_OPERANDS_248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
WGMMA_SHAPE(256, 128, 129, 130, 131, 132, 133, 134)
