// Folded at the end: k-means beside the result, scores, charts, settings.
import { data } from "./data";
import { percent } from "./derive";

export function More() {
  const { more } = data.value!;
  if (!more) return null;
  const { kmeans, settings, charts, scores } = more;
  return (
    <section class="more" aria-label="More">
      {kmeans && (
        <p>
          Result beside k-means: they agree on {percent(kmeans.agreement)}
          {kmeans.acc !== null && kmeans.acc_result !== null && (
            <>; by the labels {percent(kmeans.acc_result)} of the images are right, with k-means {percent(kmeans.acc)}</>
          )}.
        </p>
      )}
      {scores.length > 0 && (
        <details>
          <summary>Scores</summary>
          <table>
            <thead><tr><th scope="col">measure</th><th scope="col">value</th></tr></thead>
            <tbody>{scores.map(([name, value]) => <tr><td>{name}</td><td class="value">{value}</td></tr>)}</tbody>
          </table>
        </details>
      )}
      {charts.map(({ title, text, svg }) => (
        <details>
          <summary>{title}</summary>
          <p>{text}</p>
          {/* As a picture an SVG can neither run a script nor load anything. */}
          <img class="chart" loading="lazy" alt={`${title}: ${text}`} src={`data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`} />
        </details>
      ))}
      {settings && <details><summary>Settings</summary><pre>{settings}</pre></details>}
    </section>
  );
}
