"""The element that shows a job's pictures: the playing preview, the film so far, the result to download.

It is changed in place and only where an address differs, so that nothing flickers and a film plays on.
"""

HTML = """
<div class="empty"></div>
<div class="stage">
  <figure class="made">
    <video controls loop muted playsinline autoplay></video><img class="picture" alt="">
    <figcaption></figcaption>
  </figure>
  <figure class="live"><img class="preview" alt=""><figcaption></figcaption></figure>
</div>
<div class="result"><a class="download" download></a><button type="button" class="use" data-field="image"></button
  ><button type="button" class="use" data-field="end_image"></button
  ><button type="button" class="folder"></button><span class="end"></span><span class="facts"></span></div>
<div class="more"><details class="metadata"><summary></summary><dl></dl></details></div>
"""

CSS = """
.empty { display: grid; place-items: center; padding: 8px; text-align: center;
  min-height: var(--empty-height, 320px); border-radius: 8px;
  color: var(--body-text-color-subdued); background: var(--background-fill-secondary);
  border: 1px dashed var(--border-color-primary); }
.stage { display: flex; gap: 8px; }
figure { flex: 1 1 0; min-width: 0; margin: 0; }
video, img { display: block; width: 100%; max-height: var(--viewer-height, 60vh); object-fit: contain;
  border-radius: 8px; background: var(--background-fill-secondary); }
.preview { image-rendering: pixelated; }
figcaption { margin-top: 4px; font-size: 12px; text-align: center; color: var(--body-text-color-subdued); }
.result { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 16px; margin-top: 8px; font-size: 14px; }
.download { padding: 8px 16px; border-radius: 6px; text-decoration: none; color: #fff !important;
  background: var(--button-primary-background-fill); }
.use, .folder { margin: 0 !important; padding: 8px 12px; border-radius: 6px; cursor: pointer; font-size: 13px; font-weight: 400;
  color: var(--body-text-color);
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.facts { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.end { font-weight: 600; overflow-wrap: anywhere; }
.more { display: flex; flex-wrap: wrap; gap: 0 24px; margin-top: 8px; font-size: 13px; }
.more details[open] { flex-basis: 100%; }
.metadata dl { display: grid; grid-template-columns: minmax(0, max-content) minmax(0, 1fr); gap: 2px 16px; margin: 4px 0 0;
  max-height: 30vh; overflow: auto; }
dt { color: var(--body-text-color-subdued); }
dd { margin: 0; overflow-wrap: anywhere; user-select: text; }
[hidden] { display: none !important; }
/* Pinned on a phone: every line is taken from the form, and the folder is on another machine. */
@media (max-width: 800px) {
  .folder { display: none; }
  .result { gap: 4px 8px; font-size: 12px; }
  .use, .download { padding: 4px 8px; font-size: 12px; }
  .metadata dl { max-height: 16vh; }
}
"""

JS = """
const find = name => element.querySelector(name);
let live = '';
const source = (node, address) => {
  if ((node.getAttribute('src') || '') === address) return;
  if (address) { node.setAttribute('src', address); return; }
  node.removeAttribute('src');
  if (node.load) node.load();
};
function show() {
  const value = props.value || {};
  const labels = value.labels || {};
  const picture = value.picture || '', film = picture ? '' : value.film || '';
  source(find('video'), film);
  source(find('.picture'), picture);
  source(find('.preview'), live);
  const ratio = value.width ? value.width + ' / ' + value.height : '';
  for (const node of [find('video'), find('.picture'), find('.preview')]) node.style.aspectRatio = ratio;
  find('video').hidden = !film;
  find('.picture').hidden = !picture;
  find('.made').hidden = !(film || picture);
  find('.live').hidden = !live;
  find('.made figcaption').textContent = value.running && film ? labels.so_far : '';
  find('.live figcaption').textContent = live ? labels.preview : '';
  find('.empty').textContent = labels.empty || '';
  find('.empty').hidden = Boolean(live || film || picture);
  const result = value.result;
  find('.result').hidden = !result;
  if (result) {
    find('.download').href = result.url;
    find('.download').download = result.name;
    find('.download').textContent = labels.download;
    find('.end').textContent = value.end;
    find('.facts').textContent = value.facts;
    find('.folder').textContent = labels.folder;
    for (const button of element.querySelectorAll('.use')) {
      button.hidden = !(button.dataset.field in value.uses);
      button.textContent = value.uses[button.dataset.field] || '';
    }
  }
  const metadata = value.metadata || [];
  find('.metadata').hidden = !metadata.length;
  find('.metadata summary').textContent = labels.metadata || '';
  find('.metadata dl').replaceChildren(...metadata.flatMap(pair => pair.map((text, at) => {
    const cell = document.createElement(at ? 'dd' : 'dt');
    cell.textContent = text;
    return cell; })));
  element.dataset.filled = live || film || picture ? 'yes' : 'no';
}
for (const button of element.querySelectorAll('.use'))
  button.addEventListener('click', () => trigger('click', { field: button.dataset.field }));
find('.folder').addEventListener('click', () => trigger('click', { field: 'folder' }));
show();
watch('value', show);
document.addEventListener('eichi-news', event => {
  if (event.detail.preview !== live) { live = event.detail.preview; show(); } });
"""
