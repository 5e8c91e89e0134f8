    // SIDE rows and WIDTH columns of every subgroup pass through the band.
    workgroupBarrier();
    //#for f in 0..WIDTH / SIDE
    coopStoreT(acc_${i}_${j * WIDTH / SIDE + f}, &band[to_${f}], BAND_STRIDE * BAND_GROUP);
    //#end
    workgroupBarrier();
