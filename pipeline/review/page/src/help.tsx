// Two small dialogs: the keys, and the corrections of a single file as commands.
import { useState } from "preact/hooks";
import { data, say } from "./data";
import { Dialog } from "./dialog";
import { commands } from "./local";

const KEYS: [string, string][] = [
  ["Enter in a name", "takes it, or the suggestion if the field is empty; goes to the next"],
  ["1  2  n", "To check: its group, the runner-up, neither"],
  ["y  n", "check of 30 sure images: right, wrong"],
  ["z, Ctrl+Z", "undo; in the check of 30: back"],
  ["← →", "photo: previous, next; Esc closes"],
  ["arrows, Enter", "images: go, open"],
  ["Space, Shift, Ctrl+A, Esc", "images: select, up to here, all, none"],
  ["?", "this list"],
];

export function Keys({ close }: { close: () => void }) {
  return (
    <Dialog title="Keys" close={close}>
      <dl class="keys">{KEYS.map(([key, what]) => <><dt><kbd>{key}</kbd></dt><dd>{what}</dd></>)}</dl>
    </Dialog>
  );
}

export function CopyCorrections({ close }: { close: () => void }) {
  const text = commands(data.value!);
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(true);
      say("copied; paste it into a terminal in the project's folder");
    } catch {
      // A browser may refuse a file its clipboard: then it is selected, for Ctrl+C.
      const area = document.querySelector<HTMLTextAreaElement>("#commands")!;
      area.focus();
      area.select();
      if (document.execCommand("copy")) setCopied(true);
      else say("press Ctrl+C to copy what is selected", true);
    }
  };
  return (
    <Dialog title="Copy corrections" close={close} class="wide">
      <p>Run these in the project's folder; this file itself keeps nothing.</p>
      <textarea id="commands" readOnly rows={Math.min(16, text.split("\n").length + 1)} value={text} dir="ltr" />
      <div class="line end">
        <button type="button" class="main" onClick={copy}>{copied ? "Copied" : "Copy"}</button>
      </div>
    </Dialog>
  );
}
