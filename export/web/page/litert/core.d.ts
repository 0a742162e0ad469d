// export/web/build.py copies the runtime here.
export * from "@litertjs/core";
