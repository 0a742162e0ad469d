// Where export/page.py puts the runtime.
export * from "@litertjs/core";
