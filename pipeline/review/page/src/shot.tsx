// The photo that is asked about: large, with its name, and openable.
import { data } from "./data";
import { fileOf, folderOf } from "./derive";
import { Thumb } from "./pictures";
import { openPhoto } from "./viewer";

export function Shot({ image }: { image: number }) {
  const source = data.value!.images.source[image];
  return (
    <figure class="shot">
      <button type="button" class="picture" onClick={() => openPhoto(image, [image])} title="Open large">
        <Thumb image={image} large key={image} />
      </button>
      <figcaption><bdi>{fileOf(source)}</bdi> <small dir="auto">{folderOf(source)}</small></figcaption>
    </figure>
  );
}
