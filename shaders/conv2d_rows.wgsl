// Which pixels the rows of a convolution's product are: those of an image one after the other, image by
// image, or, where padding is much of what small images read, those at one place of all images one after
// the other, place by place. The taps that read padding at all places of a tile are passed over.

struct Pixel { image: u32, place: u32 }

fn pixel_of(row: u32, images: u32, places: u32) -> Pixel {
  if p.images_first != 0u { return Pixel(row % images, row / images); }
  return Pixel(row / places, row % places);
}

fn next_pixel(pixel: Pixel, images: u32, places: u32) -> Pixel {
  if p.images_first != 0u {
    let last = pixel.image + 1u == images;
    return Pixel(select(pixel.image + 1u, 0u, last), pixel.place + u32(last));
  }
  let last = pixel.place + 1u == places;
  return Pixel(pixel.image + u32(last), select(pixel.place + 1u, 0u, last));
}

// The first and last lines and columns, of so many columns, of the places of the rows first … last.
fn places_of(first: u32, last: u32, images: u32, places: u32, columns: u32) -> vec4<u32> {
  let images_first = p.images_first != 0u;
  let cells = rectangle(first, last, select(places, images, images_first));
  let range = select(cells.zw, cells.xy, images_first);
  return rectangle(range.x, range.y, columns);
}
