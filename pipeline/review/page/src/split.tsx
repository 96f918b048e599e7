// Split: what the parts would be is shown before anything changes.
import { useEffect, useState } from "preact/hooks";
import { edit, isReport, previewSplit } from "./data";
import { byNumber, counted, titleOf } from "./derive";
import { Dialog } from "./dialog";
import { Thumb } from "./pictures";

const SHOWN = 12; // of each part

export function Split({ number, close }: { number: number; close: () => void }) {
  const group = byNumber.value.get(number);
  const [parts, setParts] = useState(2);
  const [preview, setPreview] = useState<number[][] | null>(null);
  const [error, setError] = useState("");
  useEffect(() => {
    if (isReport()) return;
    let current = true; // an answer for another number of parts may still be on its way
    setPreview(null);
    setError("");
    previewSplit(number, parts).then(
      (found) => current && setPreview(found),
      (reason) => current && setError(String(reason.message ?? reason)),
    );
    return () => void (current = false);
  }, [number, parts]);
  if (!group) return null;
  const split = async () => {
    if (await edit({ action: "split", group: number, parts })) close();
  };
  return (
    <Dialog title={`Split ${titleOf(number)}`} close={close} class="wide">
      <p class="line">
        {counted(group.size, "image")} in
        <select value={String(parts)} autofocus aria-label="Parts" onChange={(event) => setParts(Number((event.target as HTMLSelectElement).value))}>
          {[2, 3, 4, 5, 6].map((n) => <option value={String(n)}>{n}</option>)}
        </select>
        parts
      </p>
      {isReport() && <p>This file cannot show the parts; the command finds them.</p>}
      {error && <p class="error" role="alert">{error}</p>}
      {!isReport() && !preview && !error && <p role="status">looking for the parts…</p>}
      <div class="parts">
        {preview?.map((images, i) => (
          <section key={i}>
            <h3>Part {i + 1}: {counted(images.length, "image")}</h3>
            <div class="few">{spread(images).map((image) => <Thumb key={image} image={image} />)}</div>
          </section>
        ))}
      </div>
      <div class="line end">
        <span>Undo joins them again.</span>
        <button type="button" onClick={close}>Cancel</button>
        <button type="button" class="main" disabled={!isReport() && !preview} onClick={split}>Split into {parts}</button>
      </div>
    </Dialog>
  );
}

/** Some from all over the part: its first ones alone might be all alike. */
function spread(images: number[]): number[] {
  const step = Math.max(1, images.length / SHOWN);
  return Array.from({ length: Math.min(SHOWN, images.length) }, (_, i) => images[Math.floor(i * step)]);
}
