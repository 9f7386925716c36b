local status = obj.status or {}
local phase = status.phase or "Pending"

local message = status.reason or phase
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" and condition.message ~= nil and condition.message ~= "" then
    message = condition.message
  end
end

if phase == "Succeeded" or (phase == "Failed" and status.reason == "Cancelled") then
  return { status = "Healthy", message = message }
end
if phase == "Failed" then
  return { status = "Degraded", message = message }
end
return { status = "Progressing", message = message }
