// The block tiles of this family. Mirrored by src/backend/gpu/choice/mma.rs, which chooses among them.
//
// Every instantiation costs compile time and a place in the choice, so each has a reason:
//   large   the highest arithmetic intensity; needs many tiles. No totals: they would cost half the resident warps
//   medium  half the columns: twice the blocks, and room for totals
//   small   the smallest problems, and every operand whose channels are no multiple of 16 bytes (its loads are the limit)
//   narrow  up to 32 output channels (image channels): fewer columns of zeros
//   f32     one tile, for verification
#pragma once

#include "gemm/tile.cuh"

using LargeTile = TileShape<bf16, 128, 128, 32, 2, 4, 4, false>;
using MediumTile = TileShape<bf16, 128, 64, 32, 4, 2, 4, true>;
using SmallTile = TileShape<bf16, 64, 64, 32, 2, 2, 4, true>;
using NarrowTile = TileShape<bf16, 128, 32, 32, 4, 1, 4, true>;
using FloatTile = TileShape<float, 64, 64, 16, 2, 2, 4, true>;
// The weight gradient splits its depth over blocks only and needs no totals.
using SmallGradientTile = TileShape<bf16, 64, 64, 32, 2, 2, 4, false>;
using FloatGradientTile = TileShape<float, 64, 64, 16, 2, 2, 4, false>;
