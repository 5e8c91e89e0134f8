      // A step on the units: every subgroup its part of the tile.
      for (var k = 0u; k < ${SPAN * DEPTH}u; k += SIDE) {
        //#if REACH
        let a_row = part_row + shift + k / DEPTH;
        let a_k = k % DEPTH;
        //#else
        let a_row = part_row;
        let a_k = k;
        //#end
        //#for part in 0..PARTS
        //#for i in 0..SM / SIDE
        //#if A_BY_ROWS
        let a_${i}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + (a_row + ${i * SIDE}u) * A_STRIDE + a_k / PACKET) * GROUP], A_STRIDE * GROUP);
        //#else
        let a_${i}_${part} = coopLoad<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + a_k * A_STRIDE + (a_row + ${i * SIDE}u) / PACKET) * GROUP], A_STRIDE * GROUP);
        //#end
        //#end
        //#end
        //#for j in 0..SN / SIDE
        //#for part in 0..PARTS
        //#if B_BY_ROWS
        let b_${j}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, B>>(
          &b_tile[(${part} * B_TILE + k * B_STRIDE + (part_column + ${j * SIDE}u) / PACKET) * GROUP], B_STRIDE * GROUP);
        //#else
        let b_${j}_${part} = coopLoad<coop_mat${SIDE}x${SIDE}<factor, B>>(
          &b_tile[(${part} * B_TILE + (part_column + ${j * SIDE}u) * B_STRIDE + k / PACKET) * GROUP], B_STRIDE * GROUP);
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
