/** Functions that look.mjs calls, as `look`, in the page of a notebook. JupyterLab exposes itself as `jupyterapp`. */

/* global jupyterapp */
const notebook = () => jupyterapp.shell.currentWidget;
const cells = () => notebook().content.widgets;
const scroller = () => document.querySelector(".jp-WindowedPanel-outer");
const source = ({ model }) => model.sharedModel.getSource();
const nameOf = (cell) =>
  cell ? `cell [${cell.model.executionCount ?? "*"}] ${source(cell).split("\n")[0]}` : "no cell";
const around = (element) => element && cells().find(({ node }) => node.contains(element));

// Errors are taken from the kernel's messages, because no cell shows an error in a widget's callback.
const heard = [];
const listen = (_, { header, parent_header, content }) => {
  if (header.msg_type !== "error") return;
  const asked = ({ outputArea }) => outputArea?.future?.msg.header.msg_id === parent_header.msg_id;
  heard.push({ cell: cells().find(asked), error: `${content.ename}: ${content.evalue}` });
};

window.look = {
  async run() {
    await jupyterapp.restored;
    const { context, sessionContext } = notebook();
    await Promise.all([context.ready, sessionContext.ready]);
    sessionContext.iopubMessage.connect(listen);
    await jupyterapp.commands.execute("notebook:run-all-cells");
  },

  cellOf: (element) => nameOf(around(element)),
  unfinished: () => cells().filter((cell) => cell.model.executionCount === null && source(cell).trim()).map(nameOf),

  /** Return the errors since the last call. Errors that belong to no cell are the widget's. */
  errors: (widget) => heard.splice(0).map(({ cell, error }) => `${nameOf(cell ?? around(widget))}: ${error}`),

  /** Wait until the kernel has handled everything that it was sent. */
  settle: () => notebook().sessionContext.session.kernel.requestExecute({ code: "", silent: true }).done.then(() => {}),

  /** Return what the widget's cell shows, without lists and sliders, which change even if the kernel is dead. */
  shownBeside(widget) {
    const shown = widget.closest(".jp-Cell-outputArea").cloneNode(true);
    shown.querySelectorAll(".widget-dropdown, .widget-slider").forEach((control) => control.remove());
    return shown.innerHTML;
  },

  /** Return where pages begin. They begin at a cell, so that only a cell longer than a page is cut. */
  pageStarts() {
    const height = scroller().clientHeight;
    const origin = scroller().getBoundingClientRect().top - scroller().scrollTop;
    const starts = [0];
    for (const { node } of cells()) {
      const box = node.getBoundingClientRect();
      const isFull = () => box.bottom - origin > starts.at(-1) + height;
      if (isFull() && box.top - origin > starts.at(-1)) starts.push(box.top - origin);
      while (isFull()) starts.push(starts.at(-1) + height);
    }
    return starts;
  },

  async scrollTo(top) {
    scroller().scrollTo(0, top);
    await Promise.allSettled([...document.images].map((image) => image.decode()));
  },

  shutdown: () => notebook().sessionContext.shutdown(),
};
