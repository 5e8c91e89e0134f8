      // A step on the units: every subgroup its part of the tile.
      for (var term = 0u; term < ${SPAN * DEPTH}u; term += SIDE) {
        let tap = term / DEPTH;
        let k = term % DEPTH;
        //#for part in 0..PARTS
        //#for i in 0..SM / SIDE
        //#if A_BY_ROWS
        let a_${i}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + (part_row + tap + ${i * SIDE}u) * A_STRIDE + k / PACKET) * GROUP], A_STRIDE * GROUP);
        //#else
        let a_${i}_${part} = coopLoad<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + k * A_STRIDE + (part_row + ${i * SIDE}u) / PACKET) * GROUP], A_STRIDE * GROUP);
        //#end
        //#end
        //#end
        //#for j in 0..SN / SIDE
        //#for part in 0..PARTS
        //#if B_BY_ROWS
        let b_${j}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, B>>(
          &b_tile[(${part} * B_TILE + term * B_STRIDE + (part_column + ${j * SIDE}u) / PACKET) * GROUP], B_STRIDE * GROUP);
        //#else
        let b_${j}_${part} = coopLoad<coop_mat${SIDE}x${SIDE}<factor, B>>(
          &b_tile[(${part} * B_TILE + (part_column + ${j * SIDE}u) * B_STRIDE + term / PACKET) * GROUP], B_STRIDE * GROUP);
        //#end
        //#end
        //#for i in 0..SM / SIDE
        //#for left in 0..PARTS
        //#for right in 0..PARTS - left
        acc_${i}_${j} = coopMultiplyAdd(a_${i}_${left}, b_${j}_${right}, acc_${i}_${j});
        //#end
        //#end
        //#end
        //#end
      }
