// figures are drawn in pixels: draw them again in the paper's width, and as before afterwards
const figures = () => [...document.querySelectorAll('.js-plotly-plot')];
addEventListener('beforeprint', () => figures().forEach(f => {
  f.screen = f.layout.width;
  const wide = Math.max(820, f.layout.width || 0);
  Plotly.relayout(f, {width: wide}); f.parentElement.style.zoom = 680 / wide; }));
addEventListener('afterprint', () => figures().forEach(f => {
  f.parentElement.style.zoom = ''; Plotly.relayout(f, {width: f.screen, autosize: !f.screen}); }));
