// One question at a time: does this image belong with these, or with those?
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { data, edit, isReport, photo } from "./data";
import { byNumber, counted, percent, titleOf } from "./derive";
import { GroupSelect } from "./filters";
import { Row } from "./pictures";
import { Promise30 } from "./promise";
import { route } from "./route";
import { Shot } from "./shot";
import type { Question } from "./types";
import { asked, typing, viewer } from "./viewer";

interface Answered {
  question: Question;
  kept: boolean; // by the server: "leave it" changes nothing there that its undo could take back
}

// Answered in this page, in order: the next question comes at once, and undo brings the last one back.
const answered = signal<Answered[]>([]);

// What is asked stays until it is answered, though each answer reorders what comes after it.
const current = signal<Question | null>(null);

function remaining(): Question[] {
  const { questions, images } = data.value!;
  const gone = new Set(answered.value.map(({ question }) => question.image));
  return questions.filter(({ image }) => !gone.has(image) && !images.answered[image]);
}

async function answer(question: Question, group: number | null): Promise<void> {
  const entry = { question, kept: group !== null };
  answered.value = [...answered.value, entry];
  current.value = remaining()[0] ?? null;
  if (await edit({ action: "answer", image: question.image, group })) return;
  answered.value = answered.value.filter((one) => one !== entry);
  current.value = question;
}

async function undo(): Promise<void> {
  const last = answered.value.at(-1);
  if (last?.kept !== false && !(await edit({ action: "undo" }))) return;
  if (!last) return;
  answered.value = answered.value.filter((one) => one !== last);
  current.value = last.question;
}

export function Check() {
  return route.value.promise && !isReport() ? <Promise30 /> : <Questions />;
}

function Questions() {
  const left = remaining();
  const pinned = current.value;
  const question = pinned && byNumber.value.has(pinned.group) ? pinned : left[0]; // its group may have been merged
  const next = left.find((one) => one.image !== question?.image);
  useEffect(() => {
    current.value = question ?? null;
  }, [question]);

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (typing(event) || asked.value || viewer.value || event.repeat) return;
      if (event.key === "z") void undo();
      else if (!question) return;
      else if (event.key === "1") void answer(question, question.group);
      else if (event.key === "2" && question.runner_up) void answer(question, question.runner_up);
      else if (event.key === "n") void answer(question, null);
      else return;
      event.preventDefault();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [question]);
  useEffect(() => {
    const source = next && photo(next.image);
    if (source) new Image().src = source;
  }, [next?.image]);

  const done = answered.value.length;
  if (!question) {
    return (
      <div class="empty">
        <p>{done ? `No questions are left; you answered ${done}.` : "There is nothing to ask."}</p>
        {done > 0 && <button type="button" onClick={undo}>Undo the last (z)</button>}
      </div>
    );
  }
  const { image, group, runner_up, own, other } = question;
  const total = done + left.length; // the one that is asked is among those left
  return (
    <div class="question">
      <p class="progress">
        <progress max={total} value={done} aria-label="Answered" />
        <span role="status">{counted(done, "answer")}; {counted(left.length, "question")} left, the most helpful first</span>
      </p>
      <Shot image={image} />
      <div class="answers">
        <h2>Where does it belong?</h2>
        <Choice hint="1" title={titleOf(group)} note={`its group now, ${percent(data.value!.images.probability[image])}`}
          choose={() => answer(question, group)} images={own} />
        {runner_up > 0 && (
          <Choice hint="2" title={titleOf(runner_up)} note="the runner-up" choose={() => answer(question, runner_up)} images={other} />
        )}
        <div class="line">
          <button type="button" onClick={() => answer(question, null)}><kbd>n</kbd> neither; leave it</button>
          <GroupSelect value="" choose={(to) => to && answer(question, Number(to))} label="Another group" />
          <button type="button" onClick={undo}><kbd>z</kbd> undo</button>
        </div>
      </div>
    </div>
  );
}

/** An answer, and the three images that speak for it. */
function Choice({ hint, title, note, choose, images }: {
  hint: string; title: string; note: string; choose: () => void; images: number[];
}) {
  return (
    <section class="choice">
      <button type="button" class="main" onClick={choose}><kbd>{hint}</kbd> <bdi>{title}</bdi></button>
      <small>{note}; the nearest there:</small>
      <Row images={images.slice(0, 3)} label={`Nearest in ${title}`} />
    </section>
  );
}
